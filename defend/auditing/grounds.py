"""What a verdict without a finding rests on: the attacks that could have told, and converged.

An attack that finds nothing says little if its gradient is not the slope of the scored loss, if the
network that it differentiates imitates the purifier badly, or if its queries ended too early.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from defend.auditing.comparison import MIN_GAP
from defend.auditing.context import Context
from defend.auditing.session import STANDING, Session, result_or_error
from defend.auditing.thresholds import THRESHOLDS
from defend.auditing.verdict import CheckResult, GroundSlope, NotApplicable
from defend.benchmarks.component_keys import is_undefended
from defend.gradients import Backward, Relaxed
from defend.target import Target

DECLARED = "declared gradient"
RELAXATION = Relaxed(0.3)  # the middle temperature


@dataclass
class Grounds:
    """Why nothing was found: because nothing is hidden, or because nobody could have found it."""

    rests_on: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # why each other attack could not tell
    slopes: list[GroundSlope] = field(default_factory=list)  # of every gradient


def find_grounds(session: Session) -> Grounds:
    """Return what the verdict rests on."""
    grounds = Grounds()
    accuracy = session.declared.best.accuracy
    if 100 * accuracy < MIN_GAP:
        grounds.rests_on.append(
            f"the declared gradient's attacks, which leave {100 * accuracy:.1f} %"
        )
        return grounds
    if is_undefended(session.context.purifier):
        grounds.rests_on.append("there is no purifier that could hide anything")
        return grounds
    for name, backward in _gradients(session):
        _add_slope(session, grounds, name, backward)
    for name in ("autograd", "learned gradient", "Square"):
        _add_outcome(session, grounds, name)
    return grounds


def _gradients(session: Session) -> list[tuple[str, Backward | None]]:
    """Return the gradients through the purifier with which attacks ran, by the names of checks."""
    gradients: list[tuple[str, Backward | None]] = [(DECLARED, None)]
    if isinstance(session.outcomes.get("autograd"), CheckResult):
        gradients += [("autograd", route) for route in session.autograd.routes]
    if isinstance(session.outcomes.get("relaxed gradient"), CheckResult):
        gradients.append(("relaxed gradient", RELAXATION))
    return gradients


def _add_slope(session: Session, grounds: Grounds, name: str, backward: Backward | None) -> None:
    slope = result_or_error(lambda: session.lowest_slope(backward))
    if isinstance(slope, Exception):
        grounds.missing.append(f"{name}: its slope could not be measured")
        return
    grounds.slopes.append(GroundSlope(name, slope.mean, slope.share))
    text = f"{name}: correlation {slope.mean:.2f} with finite differences"
    if slope.holds:
        reason = session.declared.shortage or result_or_error(lambda: _control(session, backward))
        if reason:
            grounds.missing.append(f"{name}: {reason}")
        elif name == DECLARED and session.declared.search_breaks_more:
            gain = f"{session.declared.search_gain:.1f} points"
            grounds.missing.append(f"{text}, but a longer search through it breaks {gain} more")
        else:
            grounds.rests_on.append(text)
    elif slope.mean < THRESHOLDS.ground.value:
        grounds.missing.append(f"{text}, less than {THRESHOLDS.ground.value:g}")
    else:
        few = f"{text}, and on {100 * slope.share:.0f} % of the images only"
        grounds.missing.append(f"{few} at least {THRESHOLDS.image_slope.value:g}")


def _control(session: Session, backward: Backward | None) -> str:
    """Return why an attack at twice eps shows that this gradient leads nowhere; "" if it does not.

    It must break most of what stands at eps, or as much as behind no purifier: a robust classifier
    stands by itself.
    """
    context, best = session.context, session.declared.best
    rows = context.all_rows[torch.from_numpy(best.scores >= STANDING).to(context.x.device)]
    target = context.target(rows, backward, context.copies, stream="control")
    left = _left_by_control(context, target, rows)
    if left <= 1 - THRESHOLDS.control.value:
        return ""
    bare = Target(context.network, context.no_defense, context.noise.take(rows).fork("control"))
    if left <= _left_by_control(context, bare, rows) + THRESHOLDS.gap.value / 100:
        return ""
    return f"at twice eps it still leaves {100 * left:.0f} % of what it leaves at eps"


def _left_by_control(context: Context, target: Target, rows: Tensor) -> float:
    """Return the share of these images that stand against an attack on the target at twice eps.

    An attack on the bare classifier is scored there.
    """
    if not len(rows):
        return 0.0
    spec = f"pgd:steps={min(40, context.budget.alternative_steps)}"
    x_adv = context.attack(spec, target, rows, eps=min(1.0, 2 * context.eps))
    if target.purifier is context.no_defense:
        return float((target.logits(x_adv).argmax(1) == context.y[rows]).double().mean())
    return float(context.score_rows(x_adv, rows, "control", context.budget.score_draws).mean())


def _add_outcome(session: Session, grounds: Grounds, name: str) -> None:
    """Add an attack whose result says by itself whether it could have told."""
    outcome = session.outcomes.get(name)
    if isinstance(outcome, CheckResult) and name == "autograd":
        return  # its slope decides
    if isinstance(outcome, CheckResult):
        reason = outcome.inconclusive or outcome.weakness
        if reason:
            grounds.missing.append(f"{name}: {reason}")
        else:
            grounds.rests_on.append(name)
    elif isinstance(outcome, NotApplicable):
        grounds.missing.append(f"{name}: {outcome}")
