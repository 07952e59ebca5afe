"""What a record of a search in rounds says: which gradients it tried, and what broke images."""

from __future__ import annotations

from defend.records import Record
from defend.search_moves import STARTS, Move

LEAST_SHARE = 0.02  # of the images, that fell to a random search, so that it says something
_RANDOM_MOVES = frozenset(str(Move("none", "square", start)) for start in STARTS)


def searches_every_gradient(record: Record) -> bool:
    """Return True if the cell is a search in rounds that went on to other gradients by itself.

    Through a gradient that the caller chose it takes that one alone.
    """
    takes_every = record.settings.attack.get("gradients") == "every"
    return record.rounds is not None and takes_every and record.gradient == "declared"


def share_broken_at_random(record: Record) -> float:
    """Return the share of the images that the random search of a search in rounds broke."""
    broken_by = record.rounds.broken_by if record.rounds else {}
    return sum(count for move, count in broken_by.items() if move in _RANDOM_MOVES) / record.n


def fell_to_random_search(record: Record) -> bool:
    """Return True if most of what a search in rounds broke fell to its random search.

    Gradients come first in each round, so that these images had withstood every gradient then.
    """
    share = share_broken_at_random(record)
    broken = sum(record.rounds.broken_by.values()) if record.rounds else 0
    return share >= LEAST_SHARE and 2 * share * record.n > broken
