"""The best attacks through the declared gradient: what the evaluation reports.

They give one curve along attack steps and, for a stochastic purifier, one along EOT copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from defend.auditing.comparison import (
    MIN_GAP,
    AttackedImages,
    pipeline_attempts,
    worst_over_alternatives,
)
from defend.auditing.context import Context, Floats
from defend.auditing.thresholds import THRESHOLDS
from defend.auditing.verdict import Check, CheckResult, CurvePoint, NotApplicable
from defend.losses import MIN_CLASSES

if TYPE_CHECKING:
    from defend.auditing.session import Session

DOUBLED_STEPS = 40  # of the attack whose EOT copies are doubled
NO_DROP_KNOWN = 100.0  # points; a curve of one point has no drop to judge


@dataclass
class DeclaredAttack:
    """What the declared gradient's attacks left; every other attack is compared with `best`."""

    best: AttackedImages
    clean_accuracy: float
    curve: list[CurvePoint] = field(default_factory=list)  # along attack steps
    copies: list[CurvePoint] = field(default_factory=list)  # along EOT copies
    searched: AttackedImages | None = None  # `best`, and the persistent search through it

    @property
    def worst(self) -> AttackedImages:
        """Return what everything through the declared gradient leaves, the search included."""
        return self.searched or self.best

    @property
    def lowest(self) -> Floats:
        """Return what every attack of the audit leaves of each image together: (n,)."""
        combined = self.worst.copy()
        searched = self.searched.alternatives if self.searched else []
        combined.alternatives = [*self.best.alternatives, *searched]
        return worst_over_alternatives(combined)

    @property
    def search_gain(self) -> float:
        """Return how many percentage points the search through the declared gradient adds."""
        return 100 * (self.best.accuracy - self.worst.accuracy)

    @property
    def search_breaks_more(self) -> bool:
        """Return True if that search shows that the attacks before it had not converged."""
        return self.search_gain >= MIN_GAP

    @property
    def steps_converged(self) -> bool:
        """Return True if more steps break nothing more, or if nothing is left to break."""
        return self.best.accuracy == 0 or last_drop(self.curve) <= THRESHOLDS.converged.value

    @property
    def copies_converged(self) -> bool:
        """Return True if twice the copies break nothing more; a deterministic purifier has none."""
        if self.best.accuracy == 0 or not self.copies:
            return True
        return last_drop(self.copies) <= THRESHOLDS.eot.value

    @property
    def converged(self) -> bool:
        """Return True if neither more steps nor more copies break anything more."""
        return self.steps_converged and self.copies_converged

    @property
    def shortage(self) -> str:
        """Return why no verdict may rest on these attacks; "" if one may.

        A point or two, which the accuracy as it is printed tells of, may be one image.
        """
        limit = THRESHOLDS.suspicious.value
        if self.best.accuracy and last_drop(self.curve) >= limit:
            return f"more steps still break {last_drop(self.curve):.1f} points"
        if self.best.accuracy and self.copies and last_drop(self.copies) >= limit:
            return f"twice the copies still break {last_drop(self.copies):.1f} points"
        return ""

    @property
    def text(self) -> str:
        """Return the accuracy as a table prints it: an upper bound if not converged."""
        accuracy = f"{100 * self.best.accuracy:.1f} %"
        is_final = self.converged and not self.search_breaks_more
        return accuracy if is_final else f"<= {accuracy} (unconverged)"


def last_drop(curve: Sequence[CurvePoint]) -> float:
    """Return the percentage points between the last two points of a curve."""
    if len(curve) < 2:
        return NO_DROP_KNOWN
    return round(100 * (curve[-2].accuracy - curve[-1].accuracy), 9)


def attack_declared(context: Context) -> DeclaredAttack:
    """Run APGD with more and more steps, PGD, and targeted DLR on what is still correct.

    For a stochastic purifier PGD runs again with more and more EOT copies.
    """
    best = AttackedImages(context, context.all_rows)
    declared = DeclaredAttack(best, best.accuracy)
    _raise_steps(context, declared)
    _run(context, best, "pgd:steps=40")
    if context.classes >= MIN_CLASSES["dlr-targeted"]:
        budget = context.budget
        _run(
            context,
            best,
            f"apgd:loss=dlr-targeted,steps={budget.target_steps},targets={budget.targets}",
        )
    if context.stochastic:
        _double_copies(context, declared)
    return declared


def _run(context: Context, best: AttackedImages, spec: str) -> None:
    for attempt in pipeline_attempts(context, [spec]):
        best.run(attempt)


def _raise_steps(context: Context, declared: DeclaredAttack) -> None:
    """Run APGD along the budget's curve; beyond the sure steps only while the accuracy falls."""
    for steps in context.budget.curve_steps:
        if steps > context.budget.sure_steps and declared.steps_converged:
            return
        _run(context, declared.best, f"apgd:loss=ce,steps={steps}")
        declared.curve.append(CurvePoint(steps, declared.best.accuracy))


def _attack_with_copies(context: Context, spec: str, copies: int, rows: Tensor) -> Tensor:
    return context.attack(spec, context.target(rows, eot=copies), rows)


def _double_copies(context: Context, declared: DeclaredAttack) -> None:
    """Double the EOT copies until the accuracy moves by no more than a point."""
    copies = context.budget.eot
    spec = f"pgd:steps={DOUBLED_STEPS}"
    declared.copies.append(CurvePoint(copies, declared.best.accuracy))
    while 2 * copies <= context.budget.max_eot:
        copies *= 2
        declared.best.run(partial(_attack_with_copies, context, spec, copies))
        declared.copies.append(CurvePoint(copies, declared.best.accuracy))
        context.copies = copies  # the other gradients get as many
        if last_drop(declared.copies) <= THRESHOLDS.eot.value:
            return


def _check_declared(session: Session) -> CheckResult:
    declared = session.declared
    return CheckResult(
        measured=f"leaves {declared.text}; clean {100 * declared.clean_accuracy:.1f} %",
        value=declared.best.accuracy,
    )


def _check_steps(session: Session) -> CheckResult:
    declared = session.declared
    return CheckResult(
        measured=f"steps {_format_curve(declared.curve)}",
        value=last_drop(declared.curve),
        passed=declared.steps_converged,
    )


def _check_copies(session: Session) -> CheckResult:
    declared = session.declared
    if not session.context.stochastic:
        raise NotApplicable("the purifier is deterministic")
    drop = last_drop(declared.copies)
    return CheckResult(
        measured=f"copies {_format_curve(declared.copies)}",
        value=drop,
        passed=drop <= THRESHOLDS.eot.value,
    )


def _format_curve(curve: Sequence[CurvePoint]) -> str:
    return ", ".join(f"{point.effort}: {100 * point.accuracy:.1f} %" for point in curve)


CHECKS = (
    Check(
        name="declared gradient",
        question="What do the best attacks through the declared gradient leave?",
        weight="required",
        threshold="the attacks run to their end",
        source="design: APGD-CE, PGD-40, targeted APGD-DLR (arXiv:2003.01690)",
        advice="Repair the gradient: without one, the evaluation shows nothing",
        run=_check_declared,
    ),
    Check(
        name="more steps",
        question="Do more steps and restarts still break images?",
        weight="sign",
        threshold=f"<= {THRESHOLDS.converged.value:g} points at the last step of the curve",
        source="Carlini et al., arXiv:1902.06705, section 5",
        advice="Print the accuracy with <= and (unconverged), or attack with more steps",
        run=_check_steps,
    ),
    Check(
        name="more copies",
        question="Do more EOT copies still break images?",
        weight="sign",
        threshold=f"<= {THRESHOLDS.eot.value:g} points when they are doubled",
        source="Athalye et al., arXiv:1802.00420, section 4.2",
        advice="Average the gradient over more copies (--eot)",
        run=_check_copies,
    ),
)
