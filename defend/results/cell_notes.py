"""Lines below a table about single cells: flags, failures, accuracy along the queries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from defend.cell_numbers.query_curve import MARKS
from defend.record_parts import SearchRounds
from defend.records import Record
from defend.results.diagnostics import describe_cell, format_flag, format_measured
from defend.tasks.registry import load_task
from defend.tasks.task import Measure
from defend.threat_models import THREAT_MODELS

MAX_LISTED = 4  # values of eps in a line
LISTED_MOVES = 4  # of a search: those that broke the most images


def list_flags(records: Iterable[Record]) -> tuple[str, ...]:
    """Return each flag of a series once, with the eps at which it stands."""
    notes = []
    for record in records:
        for flag in record.flags or ():
            notes.append((record, format_flag(flag, record.n)))
    return join_eps(notes)


def list_failures(records: Iterable[Record]) -> tuple[str, ...]:
    """Return each error of a series once, with the eps at which it was raised."""
    return join_eps([(r, r.error) for r in records if r.error is not None])


def join_eps(notes: Iterable[tuple[Record, str]]) -> tuple[str, ...]:
    """Return a line for each series and note, with all its eps."""
    series: dict[tuple[str, str], list[str]] = {}
    for record, note in notes:
        series.setdefault((describe_cell(record), note), []).append(record.eps_text)
    return tuple(f"{cell}, eps {_format_eps(eps)}: {note}" for (cell, note), eps in series.items())


def _format_eps(eps: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(eps))
    if len(distinct) <= MAX_LISTED:
        return ", ".join(distinct)
    return f"{distinct[0]} to {distinct[-1]} ({len(distinct)} values)"


TARGET_REACHED = Measure(
    heading="classified as the target of the attack", unit="share", higher_is_better=False
)


def list_measures(records: Iterable[Record]) -> tuple[str, ...]:
    """Return a line for each cell whose task measures more than its score, clean ones first.

    "jpeg, pgd, adaptive BPDA, eps 4/255: PSNR in 40.0 dB (39.9 to 40.1); ...".
    """
    clean: list[str] = []
    attacked: list[str] = []
    for record in records:
        cell = f"{describe_cell(record)}, eps {record.eps_text}"
        for lines, name, is_clean in (
            (clean, f"{record.defense_label}, clean", True),
            (attacked, cell, False),
        ):
            texts = _format_measures(record, is_clean)
            if texts:
                lines.append(f"{name}: {'; '.join(texts)}")
    return tuple(dict.fromkeys([*clean, *attacked]))


def _format_measures(record: Record, is_clean: bool) -> list[str]:
    """Return the measures in the order of the task, those alone that the cell has."""
    texts = []
    of_task = load_task(record.task).measured
    for name, measure in (*of_task.items(), ("target_reached", TARGET_REACHED)):
        measured = record.measures.get(name)
        if measured is not None and measure.clean == is_clean:
            ends = (measured.low, measured.high)
            low, high = (format_measured(v, measure.unit).partition(" ")[0] for v in ends)
            value = format_measured(measured.value, measure.unit)
            texts.append(f"{measure.heading} {value} ({low} to {high})")
    return texts


def list_queries(records: Sequence[Record]) -> tuple[str, ...]:
    """Return accuracy along the queries, for each search that says when it broke an image."""
    searches: dict[object, Record] = {}
    for record in records:  # at `adaptive` it is the same search as at `query`, from the same units
        searches.setdefault(record.units or describe_cell(record), record)
    return tuple(_format_queries(r) for r in searches.values() if r.accuracy_after)


def _format_queries(record: Record) -> str:
    curve = record.accuracy_after or {}
    reached = {count: accuracy for count, accuracy in curve.items() if accuracy is not None}
    accuracies = [f"{100 * value:.1f} % after {int(count):,}" for count, value in reached.items()]
    cell = f"{describe_cell(record)}, eps {record.eps_text}"
    return f"{cell}: {', '.join(accuracies) or f'the search made fewer than {MARKS[0]} queries'}"


def list_rounds(records: Sequence[Record]) -> tuple[str, ...]:
    """Return how far each search in rounds came, and by what it broke images.

    A search on another pipeline than the scored one speaks of that pipeline, and is left out.
    """
    lines = []
    for record in records:
        if record.rounds and THREAT_MODELS[record.knowledge].may_drop:
            lines.append(_format_rounds(record, record.rounds))
    return tuple(dict.fromkeys(lines))


def _format_rounds(record: Record, rounds: SearchRounds) -> str:
    shares = ", ".join(f"{100 * share:.1f}" for share in rounds.standing)
    moves = [f"{move} ({count})" for move, count in rounds.broken_by.items()]
    broken_by = f"most were broken by {', '.join(moves[:LISTED_MOVES])}" if moves else "none broke"
    cell = f"{describe_cell(record)}, eps {record.eps_text}"
    return f"{cell}: {shares} % of the images; {broken_by}"
