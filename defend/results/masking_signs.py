"""Signs that no claim survives: an attack was too weak, or a gradient masked.

Every function looks at the records of one pipeline. Sources: Athalye, Carlini, Wagner,
arXiv:1802.00420, section 3.1; Carlini et al., arXiv:1902.06705, section 5; AutoAttack's checks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from defend.protocols.evidence import at_claim, is_undefended, unbounded_pgd
from defend.records import Diagnosis, FlagCode, Record
from defend.results.comparisons import compare_black_box, compare_oblivious, gradient_cells
from defend.results.diagnostics import SignCode, describe_attack
from defend.results.searches import (
    fell_to_random_search,
    searches_every_gradient,
    share_broken_at_random,
)
from defend.results.significance import IsStronger, stronger_by_intervals, value_of
from defend.threat_models import gradient_kind

MAX_LEFT_AT_EPS_1 = 0.01  # of the images may be right
# Of the images may have no gradient: float32 saturates a softmax, which the DLR loss does not mind.
MAX_WITHOUT_GRADIENT = 0.01
_GRADIENT_FLAGS = (FlagCode.ZERO_GRADIENT, FlagCode.UNDEFINED_GRADIENT)


@dataclass(frozen=True)
class Evaluation:
    """The records of one pipeline."""

    records: Sequence[Record]  # in one norm
    in_any_norm: Sequence[Record]
    is_stronger: IsStronger

    @property
    def successful(self) -> list[Record]:
        """Return the records without failures in the one norm."""
        return [r for r in self.records if not r.failed]

    @property
    def white_box(self) -> list[Record]:
        """Return the cells of adaptive gradient attacks that did not fail."""
        return gradient_cells(self.successful)


FindSign = Callable[[Evaluation], Diagnosis | None]


def find_signs(
    records: Sequence[Record],
    relatives: Sequence[Record] = (),
    is_stronger: IsStronger = stronger_by_intervals,
) -> list[Diagnosis]:
    """Return the signs in the records of one pipeline in one norm.

    relatives: records of the same pipeline in other norms.
    """
    evaluation = Evaluation(records, [*records, *relatives], is_stronger)
    signs = (find_sign(evaluation) for find_sign in CHECKS)
    return [sign for sign in signs if sign is not None]


def check_declared_alone(evaluation: Evaluation) -> Diagnosis | None:
    """Return a sign if a purifier was attacked through its declared gradient alone.

    A search in rounds may try the other gradients by itself.
    """
    gradients = {r.gradient for r in evaluation.white_box}
    has_search = any(map(searches_every_gradient, evaluation.white_box))
    if gradients != {"declared"} or has_search or is_undefended(evaluation.records[0].defense):
        return None
    return Diagnosis(code=SignCode.DECLARED_GRADIENT_ALONE)


def check_eot(evaluation: Evaluation) -> Diagnosis | None:
    """Return a sign if a stochastic purifier was only attacked through single draws."""
    stochastic = [r for r in evaluation.white_box if r.stochastic]
    if stochastic and all(r.eot == 1 for r in stochastic):
        return Diagnosis(code=SignCode.NO_EOT)
    return None


def check_randomness(evaluation: Evaluation) -> Diagnosis | None:
    """Return a sign if a purifier is called stochastic and is not.

    As a deterministic one it would have been attacked with more queries and more steps. A purifier
    that draws on some images alone draws in some cell.
    """
    records = evaluation.successful
    if not records:
        return None
    if all(r.has_flag(FlagCode.NO_DRAW_CHANGES_A_PIXEL) for r in records):
        return Diagnosis(code=SignCode.NOTHING_DRAWN)
    if all(r.stochastic and r.all_draws_correct == r.robust_accuracy for r in records):
        return Diagnosis(code=SignCode.NO_DRAW_DECIDES)
    return None


def check_black_box(evaluation: Evaluation) -> Diagnosis | None:
    """Return a sign if a black-box attack beats every adaptive one."""
    records = at_claim(evaluation.records)
    finding = next(compare_black_box(records, evaluation.is_stronger), None)
    if finding is None:
        return None
    subject = describe_attack(finding.weaker)
    return Diagnosis(code=SignCode.BLACK_BOX_BEATS_WHITE_BOX, subject=subject)


def check_random_search(evaluation: Evaluation) -> Diagnosis | None:
    """Return a sign if most of what a search in rounds broke withstood every gradient."""
    cells = gradient_cells(at_claim(evaluation.records))
    searches = [r for r in cells if fell_to_random_search(r)]
    if not searches:
        return None
    search = max(searches, key=share_broken_at_random)
    return Diagnosis(
        code=SignCode.RANDOM_SEARCH_BREAKS_MOST,
        subject=describe_attack(search),
        value=share_broken_at_random(search),
    )


def check_oblivious(evaluation: Evaluation) -> Diagnosis | None:
    """Return a sign if not knowing the purifier is better than knowing it."""
    records = at_claim(evaluation.records)
    finding = next(compare_oblivious(records, evaluation.is_stronger), None)
    if finding is None:
        return None
    return Diagnosis(code=SignCode.OBLIVIOUS_BEATS_ADAPTIVE, subject=finding.weaker.attack)


def check_eps_1(evaluation: Evaluation) -> Diagnosis | None:
    """Return a sign if images survive PGD at eps 1.

    A pipeline that has a gradient can be led anywhere through one of its gradients.
    """
    accuracies = [value_of(r) for r in unbounded_pgd(evaluation.in_any_norm)]
    if not accuracies or min(accuracies) <= MAX_LEFT_AT_EPS_1:
        return None
    return Diagnosis(code=SignCode.SURVIVES_EPS_1, value=min(accuracies))


def check_gradients(evaluation: Evaluation) -> Diagnosis | None:
    """Return a sign if a gradient is zero or undefined on too many images.

    A relaxed one is no part of it: at a small temperature it fades as the step itself does. Nor is
    that of autograd, where another one is declared because it fades.
    """
    records = [
        r
        for r in evaluation.white_box
        if gradient_kind(r.gradient or "") not in ("relaxed", "autograd")
    ]
    if not records:
        return None
    record = max(records, key=share_without_gradient)
    share = share_without_gradient(record)
    if share <= MAX_WITHOUT_GRADIENT:
        return None
    return Diagnosis(code=SignCode.NO_GRADIENT, subject=record.gradient, value=share)


def share_without_gradient(record: Record) -> float:
    """Return the share of images whose gradient is zero or undefined, in [0, 1]."""
    count = 0.0
    for flag in record.flags or ():
        if flag.code in _GRADIENT_FLAGS and flag.value is not None:
            count += float(flag.value)
    return min(1.0, count / record.n)


def check_failures(evaluation: Evaluation) -> Diagnosis | None:
    """Return a sign if a cell failed."""
    count = sum(r.failed for r in evaluation.in_any_norm)
    return Diagnosis(code=SignCode.FAILED_CELLS, value=count) if count else None


CHECKS: tuple[FindSign, ...] = (
    check_declared_alone,
    check_eot,
    check_randomness,
    check_black_box,
    check_random_search,
    check_oblivious,
    check_eps_1,
    check_gradients,
    check_failures,
)
