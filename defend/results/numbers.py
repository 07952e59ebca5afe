"""From records to one number of a table: of one cell, or the worst case over several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from defend.protocols.evidence import is_undefended
from defend.records import Flag, Measured, Record
from defend.results.candidates import distinct_candidates, worst_outcomes
from defend.results.comparisons import findings_against
from defend.results.diagnostics import Finding, FindingCode
from defend.results.model import Number
from defend.results.outcomes import Bits, OutcomeReader, Outcomes, clusters_of
from defend.results.searches import searches_every_gradient
from defend.results.significance import strongest
from defend.stats import wilson
from defend.tasks.registry import load_task
from defend.threat_models import GRADIENT_NAMES, gradient_kind


def clean_number(
    cells: Sequence[Record],
    read: Callable[[Record], Outcomes | None],
    accusations: Iterable[Finding] = (),
) -> Number:
    """Return the clean accuracy, or another clean score, which all these cells share.

    Of the accusations it is marked with those alone that the cell's own units make.
    """
    successful = [r for r in cells if not r.failed]
    if not successful:
        return _failed(cells)
    first = successful[0]
    of_units = [f for f in accusations if f.code == FindingCode.NOT_CONFIRMED]
    findings = _findings([first], of_units)
    if first.clean_score is not None:
        return replace(_number_of(first.clean_score, first), findings=findings)
    outcomes = read(first) if first.stochastic else None
    accuracy = first.clean_accuracy
    assert accuracy is not None, "a cell without an error has its numbers"
    if outcomes is None:
        things = first.distinct_images if first.sample else first.n
        low, high = wilson(min(accuracy, 1.0) * things, things)
    else:
        summary = load_task(first.task).summarise(outcomes.clean_score, first.seed, first.clusters)
        low, high = summary.low, summary.high
    return Number(value=accuracy, low=low, high=high, n=first.n, findings=findings)


def _number_of(measured: Measured, record: Record) -> Number:
    unit = load_task(record.task).unit
    return Number(value=measured.value, low=measured.low, high=measured.high, n=record.n, unit=unit)


def cells_number(
    cells: Sequence[Record],
    reader: OutcomeReader,
    accusations: Iterable[Finding] = (),
    name_gradient: bool = False,
) -> Number:
    """Return the worst case over these cells of one row.

    Failed cells are left to the list of failures, unless there is nothing else. name_gradient: note
    which gradient was used if it was a single one.
    """
    successful = [r for r in cells if not r.failed]
    if not successful:
        return _failed(cells)
    outcomes = None
    if len(successful) > 1:
        outcomes = reader.read_matching(successful)
    is_single = len(successful) == 1
    if outcomes is not None:
        is_single = len(distinct_candidates(outcomes)) == 1
    findings = _findings(successful, accusations)
    note = name_single_gradient(successful) if name_gradient and is_single else ""
    if outcomes is not None and not is_single:
        return _number_of_outcomes(worst_outcomes(outcomes), successful, findings)
    return _lowest(successful, findings, is_bound=not is_single, note=note)


def worst_number(
    cells: Sequence[Record], reader: OutcomeReader, accusations: Iterable[Finding] = ()
) -> tuple[Number, Bits | None]:
    """Return the worst case over all cells with its outcomes (n, K).

    If the units of some are not at hand, it is the minimum, as a bound, without outcomes.
    """
    successful = [r for r in cells if not r.failed]
    if not successful:
        return _failed(cells), None
    findings = _findings(successful, accusations)
    outcomes = reader.read_matching(successful)
    if outcomes is None:
        return _lowest(successful, findings, is_bound=len(successful) > 1), None
    score = worst_outcomes(outcomes)
    return _number_of_outcomes(score, successful, findings), score


def _failed(cells: Sequence[Record]) -> Number:
    return Number(value=None, n=cells[0].n, failed=cells[0].error)


def _number_of_outcomes(
    score: Bits, cells: Sequence[Record], findings: tuple[Finding, ...]
) -> Number:
    task = load_task(cells[0].task)
    summary = task.summarise(score, cells[0].seed, clusters_of(cells))
    return Number(
        unit=task.unit,
        value=summary.value,
        low=summary.low,
        high=summary.high,
        n=cells[0].n,
        flags=_flags(cells),
        findings=findings,
    )


def _lowest(
    cells: Sequence[Record], findings: tuple[Finding, ...], is_bound: bool, note: str = ""
) -> Number:
    """Return the lowest of the cells' own numbers."""
    lowest = strongest(cells)
    assert lowest.number is not None, "a cell without an error has its numbers"
    return replace(
        _number_of(lowest.number, lowest),
        note=note,
        bound=is_bound,
        flags=_flags(cells),
        findings=findings,
    )


def _flags(cells: Iterable[Record]) -> tuple[Flag, ...]:
    flags: dict[Flag, None] = {}
    for record in cells:
        flags |= dict.fromkeys(record.flags or ())
    return tuple(flags)


def _findings(cells: Iterable[Record], accusations: Iterable[Finding]) -> tuple[Finding, ...]:
    findings: list[Finding] = []
    for record in cells:
        findings += findings_against(record, accusations)
    return tuple(findings)


def name_single_gradient(cells: Sequence[Record]) -> str:
    """Return the name of a single gradient, or of several that made the same images.

    Nothing where none could matter: without a purifier to differentiate, for an attack that takes
    no gradient, and at eps 0, where each gradient gives the clean image.
    """
    gradients = {gradient_kind(r.gradient) for r in cells if r.gradient}
    names = [name for gradient, name in GRADIENT_NAMES.items() if gradient in gradients]
    if not names or cells[0].eps == 0 or is_undefended(cells[0].defense):
        return ""
    has_search = any(map(searches_every_gradient, cells))
    if len(names) == 1:
        return "" if has_search else f"{names[0]} only"
    return " = ".join(names)
