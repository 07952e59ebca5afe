"""The worst case of each image over everything that was run, for each defense of a section."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np
from numpy.typing import NDArray

from defend.eps import same_eps
from defend.protocols.evidence import is_undefended
from defend.records import Record
from defend.results.candidates import distinct_candidates
from defend.results.claims import Claims
from defend.results.diagnostics import Finding
from defend.results.grouping import claim_key, group_by, series_key
from defend.results.model import Worst
from defend.results.numbers import clean_number, worst_number
from defend.results.outcomes import OutcomeReader
from defend.results.training_knowledge import find_training_marks
from defend.stats import per_cluster
from defend.tasks.registry import load_task


def worst_cases(
    records: Sequence[Record],
    claims: Claims,
    accusations: Sequence[Finding],
    reader: OutcomeReader,
) -> tuple[Worst, ...]:
    """Return the worst case of each defense of a section, at the eps of `choose_eps`."""
    eps = choose_eps(records)
    worst = []
    for series in group_by(records, series_key).values():
        cells = [r for r in series if same_eps(r.eps, eps)]
        attacks = [r for r in cells if not r.is_control]
        if any(not r.failed for r in attacks):
            worst.append(_worst_case(cells, attacks, claims, accusations, reader))
    return tuple(worst)


def choose_eps(records: Sequence[Record]) -> float:
    """Return the claim eps if a cell was run at it, else the largest that most defenses share."""
    first = records[0]
    if first.claim_eps is not None:
        for eps in {r.eps for r in records}:
            if same_eps(eps, first.claim_eps):
                return eps
    epsilons = list_budgets(records)

    def count_defenses(eps: float) -> int:
        return len({r.defense for r in records if r.eps == eps})

    return max(epsilons, key=lambda eps: (count_defenses(eps), eps))


def list_budgets(records: Sequence[Record]) -> set[float]:
    """Return the eps of these records of one norm; 1 in L-inf is a check, unless it is alone."""
    epsilons = {r.eps for r in records}
    if records[0].norm != "Linf":
        return epsilons
    return {eps for eps in epsilons if eps < 1} or epsilons


def _worst_case(
    cells: Sequence[Record],
    attacks: Sequence[Record],
    claims: Claims,
    accusations: Sequence[Finding],
    reader: OutcomeReader,
) -> Worst:
    first = attacks[0]
    controls = [r for r in cells if r.is_control and not r.failed]
    number, score = worst_number(attacks, reader, accusations)
    is_share = load_task(first.task).unit == "share"
    draws = score if first.stochastic and is_share else None
    return Worst(
        defense=first.defense_label,
        purifier=first.pipeline.defense,
        eps=first.eps,
        eps_text=first.eps_text,
        training_marks=find_training_marks(first),
        number=number,
        clean=clean_number(attacks, reader.read_one, accusations),
        candidates=_count_candidates(attacks, reader),
        draws=first.draws,
        all_draws=None if draws is None else _share(draws.min(1) == 1, first),
        majority=None if draws is None else _share(draws.mean(1) > 0.5, first),
        control=worst_number(controls, reader)[0] if controls else None,
        controls=len(controls),
        passes=_sum_passes(attacks),
        purify_ms=_purify_ms(cells),
        claim=claims[claim_key(first)],
        cells=tuple(attacks),
    )


def _sum_passes(attacks: Sequence[Record]) -> tuple[float, float]:
    """Return forward and backward passes for each image; cells of the same units made them once."""
    computed = {r.units or r.cell_id: r for r in attacks}.values()
    return sum(r.forwards or 0 for r in computed), sum(r.backwards or 0 for r in computed)


def _count_candidates(attacks: Sequence[Record], reader: OutcomeReader) -> int:
    """Return the number of cells whose adversarial images differ, as far as units tell."""
    successful = [r for r in attacks if not r.failed]
    outcomes = reader.read_matching(successful)
    return len(successful) if outcomes is None else len(distinct_candidates(outcomes))


def _share(is_right: NDArray[np.bool_], record: Record) -> float:
    """Return the share of images (n,); those that show the same thing count once."""
    return float(per_cluster(is_right, record.clusters).mean())


def _purify_ms(cells: Sequence[Record]) -> float | None:
    """Return the cost of purifying an image; None if it is below the spread of its measurements.

    None, too, for `none`, which purifies nothing.
    """
    speeds = [r.purify_images_per_second for r in cells if r.purify_images_per_second]
    if not speeds or is_undefended(cells[0].defense):
        return None
    costs = [1000 / speed for speed in speeds]
    is_measurable = median(costs) >= max(costs) - min(costs)
    return median(costs) if is_measurable else None
