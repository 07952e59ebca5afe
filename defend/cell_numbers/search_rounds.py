"""What a search in rounds says of itself: accuracy along the rounds, and what broke the images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from defend.record_parts import SearchRounds
from defend.search_moves import NEVER, Move
from defend.unit_files import Unit

ROUND_NOTE = "note_broken_in_round"  # int64 (b,): 0 for images that were wrong at first, NEVER
MOVE_NOTE = "note_broken_by"  # int64 (b, 3): the numbers of a Move
COUNT_NOTE = "note_rounds"  # int64 (b,): how many rounds were made


def read_rounds(units: Sequence[Unit]) -> SearchRounds | None:
    """Return the rounds of a cell; None where the attack says nothing of rounds."""
    notes = (ROUND_NOTE, MOVE_NOTE, COUNT_NOTE)
    if not units or not all(note in unit.tensors for unit in units for note in notes):
        return None
    broken_in, broken_by, counts = (
        torch.cat([unit.tensors[note] for unit in units]) for note in notes
    )
    return SearchRounds(
        standing=tuple(_standing(broken_in, k) for k in range(int(counts.max()) + 1)),
        broken_by=_count_moves(broken_by[broken_in > 0]),
    )


def _standing(broken_in: Tensor, round_number: int) -> float:
    """Return the share of images that are not broken after this round."""
    is_standing = (broken_in == NEVER) | (broken_in > round_number)
    return is_standing.double().mean().item()


def _count_moves(numbers: Tensor) -> dict[str, int]:
    """Return how many images each move broke, the most first. numbers: (b, 3)."""
    moves = Counter(str(Move.of_numbers(*row)) for row in numbers.tolist())
    return dict(sorted(moves.items(), key=lambda item: (-item[1], item[0])))
