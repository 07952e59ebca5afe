"""What a record of a search in rounds says of the gradients that it tried."""

from __future__ import annotations

from defend.records import Record


def searches_every_gradient(record: Record) -> bool:
    """Return True if the cell is a search in rounds that went on to other gradients by itself.

    Through a gradient that the caller chose it takes that one alone.
    """
    takes_every = record.settings.attack.get("gradients") == "every"
    return record.rounds is not None and takes_every and record.gradient == "declared"
