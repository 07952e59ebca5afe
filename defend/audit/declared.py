"""The declared gradient's best: what the evaluation reports, with its curve along steps and along EOT copies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from defend.audit.comparison import Best, through
from defend.audit.context import Context
from defend.audit.thresholds import THRESHOLDS
from defend.audit.verdict import Check, CheckResult, NotApplicable
from defend.protocols.ladder_1 import TARGETED_DLR

DOUBLED = 40  # steps of the attack whose copies are doubled


@dataclass
class Declared:
    """Run once; every contest is with `best`."""

    best: Best
    clean: float
    curve: list[tuple[int, float]] = field(default_factory=list)  # (steps, accuracy left so far)
    copies: list[tuple[int, float]] = field(
        default_factory=list
    )  # (EOT copies, accuracy left so far)

    @property
    def converged(self) -> bool:
        """A bound under zero says nothing: where nothing is left, nothing more can fall."""
        return self.best.accuracy == 0 or _fell(self.curve) <= THRESHOLDS["converged"].value

    @property
    def text(self) -> str:
        return f"{'' if self.converged else '<= '}{100 * self.best.accuracy:.1f} %{'' if self.converged else ' (unconverged)'}"


def _fell(curve: list[tuple[int, float]]) -> float:
    """Points at the last doubling."""
    return round(100 * (curve[-2][1] - curve[-1][1]), 9) if len(curve) > 1 else 100.0


def attack_declared(context: Context) -> Declared:
    """APGD with more and more steps, PGD, targeted DLR, and for a stochastic purifier more and more copies; each on what still stands."""
    plan, best = context.budget, Best(context, context.all)
    found = Declared(best, best.accuracy)
    for steps in plan.curve:
        if steps > plan.sure and found.converged:
            break
        _each(context, best, f"apgd:loss=ce,steps={steps}")
        found.curve.append((steps, best.accuracy))
    _each(context, best, "pgd:steps=40")
    if context.classes >= TARGETED_DLR:
        _each(
            context,
            best,
            f"apgd:loss=dlr-targeted,steps={plan.target_steps},targets={plan.targets}",
        )
    if context.stochastic:
        _double(context, found)
    return found


def _each(context: Context, best: Best, *specs: str) -> None:
    for attempt in through(context, specs):
        best.run(attempt)


def _double(context: Context, found: Declared) -> None:
    """Copies are doubled until the accuracy moves by no more than a point."""
    copies, spec = context.budget.eot, f"pgd:steps={DOUBLED}"
    found.copies.append((copies, found.best.accuracy))
    while 2 * copies <= context.budget.eot_most and (
        len(found.copies) == 1 or _fell(found.copies) > THRESHOLDS["eot"].value
    ):
        copies *= 2
        found.best.run(
            lambda rows, k=copies: context.attack(spec, context.target(rows, eot=k), rows)
        )  # type: ignore[misc]
        found.copies.append((copies, found.best.accuracy))


def checks(context: Context, declared: Callable[[], Declared]) -> list[Check]:
    return [
        Check(
            name="declared gradient",
            question="What do the best attacks through the declared gradient leave?",
            weight="required",
            threshold="the attacks run to their end",
            source="design: APGD-CE, PGD-40, targeted APGD-DLR (arXiv:2003.01690)",
            advice="Mend the gradient: an evaluation without one says nothing",
            run=lambda _: _best(declared()),
        ),
        Check(
            name="more steps",
            question="Do more steps and restarts still break images?",
            weight="sign",
            threshold=f"<= {THRESHOLDS['converged'].value:g} points at the last step of the curve",
            source="Carlini et al., arXiv:1902.06705, section 5",
            advice="Print the number with <= and (unconverged), or attack with more steps",
            run=lambda _: _converged(declared()),
        ),
        Check(
            name="more copies",
            question="Do more EOT copies still break images?",
            weight="sign",
            threshold=f"<= {THRESHOLDS['eot'].value:g} points when they are doubled",
            source="Athalye et al., arXiv:1802.00420, section 4.2",
            advice="Average the gradient over more copies (--eot)",
            run=lambda _: _copies(context, declared()),
        ),
    ]


def _along(curve: list[tuple[int, float]]) -> str:
    return ", ".join(f"{k}: {100 * a:.1f} %" for k, a in curve)


def _best(found: Declared) -> CheckResult:
    return CheckResult(
        measured=f"leaves {found.text}; clean {100 * found.clean:.1f} %", value=found.best.accuracy
    )


def _converged(found: Declared) -> CheckResult:
    return CheckResult(
        measured=f"steps {_along(found.curve)}", value=_fell(found.curve), ok=found.converged
    )


def _copies(context: Context, found: Declared) -> CheckResult:
    if not context.stochastic:
        raise NotApplicable("the purifier is deterministic")
    return CheckResult(
        measured=f"copies {_along(found.copies)}",
        value=_fell(found.copies),
        ok=_fell(found.copies) <= THRESHOLDS["eot"].value,
    )
