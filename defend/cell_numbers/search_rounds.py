"""What a search in rounds says of itself: accuracy along the rounds, and what broke the images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defend.record_parts import End, SearchRounds
from defend.search_moves import ENDS, NEVER, Move
from defend.stats import per_cluster
from defend.unit_files import Unit

ROUND_NOTE = "note_broken_in_round"  # int64 (b,): 0 for images that were wrong at first, NEVER
MOVE_NOTE = "note_broken_by"  # int64 (b, 3): the numbers of a Move
COUNT_NOTE = "note_rounds"  # int64 (b,): how many rounds were made
# float32 (b, rounds + 1): the share of right draws at first and after each round
RIGHT_NOTE = "note_right_after_round"
END_NOTE = "note_ended"  # int64 (b,): the position in ENDS
Clusters = NDArray[np.int64] | None


def read_rounds(units: Sequence[Unit], clusters: Clusters = None) -> SearchRounds | None:
    """Return the rounds of a cell; None where the attack says nothing of rounds.

    clusters (n,): which images show the same thing; each thing counts once in `standing`.
    """
    notes = (ROUND_NOTE, MOVE_NOTE, COUNT_NOTE)
    if not units or not all(note in unit.tensors for unit in units for note in notes):
        return None
    broken_in, broken_by = (_join(units, note) for note in notes[:2])
    last = max(int(unit.tensors[COUNT_NOTE].max()) for unit in units)
    right = torch.cat([_right_after(unit, last) for unit in units]).double()
    return SearchRounds(
        standing=tuple(per_cluster(right.numpy(), clusters).mean(0).tolist()),
        broken_by=_count_moves(broken_by[broken_in > 0]),
        ended=_worst_end(units),
    )


def _join(units: Sequence[Unit], note: str) -> Tensor:
    return torch.cat([unit.tensors[note] for unit in units])


def _right_after(unit: Unit, last: int) -> Tensor:
    """Return how right each image is at first and after each round, (b, last + 1).

    A unit whose search ended earlier keeps its last column. Units of older versions say in which
    round an image was broken, and no more.
    """
    rounds = torch.arange(last + 1)
    if RIGHT_NOTE in unit.tensors:
        right = unit.tensors[RIGHT_NOTE]
        return right[:, rounds.clamp(max=right.shape[1] - 1)]
    broken_in = unit.tensors[ROUND_NOTE][:, None]
    return (broken_in == NEVER) | (broken_in > rounds)


def _worst_end(units: Sequence[Unit]) -> End | None:
    """Return the worst reason for which a unit ended; None if one does not say it."""
    if not all(END_NOTE in unit.tensors for unit in units):
        return None
    return cast(End, ENDS[int(_join(units, END_NOTE).max())])


def _count_moves(numbers: Tensor) -> dict[str, int]:
    """Return how many images each move broke, the most first. numbers: (b, 3)."""
    moves = Counter(str(Move.of_numbers(*row)) for row in numbers.tolist())
    return dict(sorted(moves.items(), key=lambda item: (-item[1], item[0])))
