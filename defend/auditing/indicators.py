"""The six indicators of attack failure of Pintor et al., arXiv:2106.09947, section 3.

They are written from the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor

from defend.auditing.pgd_trace import TRACE_STEPS, trace_pgd
from defend.auditing.session import Session
from defend.auditing.thresholds import THRESHOLDS
from defend.auditing.verdict import Check, CheckResult, NotApplicable
from defend.losses import cross_entropy, negative_margin

LAST_STEPS = 10  # over which an attack should no longer gain anything
CUBE = 4 / 255  # half-width of the cube in which predictions should be stable
CUBE_DRAWS = 20  # points of the cube; 100 in the paper
SMALLEST_LOSS = 1e-6
SMALLEST_RANGE = 1e-12

_PINTOR = "Pintor et al., arXiv:2106.09947, section 3"
_SHARE = f"<= {100 * THRESHOLDS.indicator.value:g} % of the images"


def _judge_share(is_affected: Tensor) -> CheckResult:
    """Return the result for the share of affected images, bool (b,)."""
    share = is_affected.double().mean().item() if len(is_affected) else 0.0
    return CheckResult(
        measured=f"{100 * share:.1f} % of the images",
        value=share,
        passed=share <= THRESHOLDS.indicator.value,
    )


def _check_unavailable_gradients(session: Session) -> CheckResult:
    return _judge_share(session.trace.no_gradient)


def _check_unstable_predictions(session: Session) -> CheckResult:
    """Average min(1, |f(x + u) - f(x)| / |f(x)|) over images and draws of u in the cube.

    f is the cross-entropy. The purifier's noise stays the same.
    """
    context, x_adv = session.context, session.trace.x_adv
    rows, y = context.probe_rows, context.probe_y
    noise = context.noise_of(rows, "unstable")
    loss = cross_entropy(context.logits(x_adv, noise.again()), y)
    total = torch.zeros_like(loss)
    for draw in range(CUBE_DRAWS):
        uniform = context.noise.take(rows).fork(f"around {draw}").uniform(x_adv)
        neighbour = (x_adv + (2 * uniform - 1) * CUBE).clamp(0, 1)
        change = (cross_entropy(context.logits(neighbour, noise.again()), y) - loss).abs()
        total += (change / loss.abs().clamp(min=SMALLEST_LOSS)).clamp(max=1)
    mean = (total / CUBE_DRAWS).mean().item()
    return CheckResult(measured=f"{mean:.2f}", value=mean, passed=mean <= THRESHOLDS.unstable.value)


def _check_silent_success(session: Session) -> CheckResult:
    is_wrong = session.trace.is_wrong
    if session.context.stochastic:
        raise NotApplicable("the prediction for an image changes with the purifier's noise")
    return _judge_share(is_wrong.any(0) & ~is_wrong[-1])


def _check_incomplete_optimisation(session: Session) -> CheckResult:
    """Measure what the last steps added to the best loss so far, relative to its whole range."""
    best = session.trace.losses.double().nan_to_num().cummax(0).values  # (steps + 1, b)
    low, high = best[0], best[-1]
    gain = (high - best[-1 - LAST_STEPS]) / (high - low).clamp(min=SMALLEST_RANGE)
    median = torch.where(high > low, gain, 0.0).median().item()
    return CheckResult(
        measured=f"{median:.3f} of its range",
        value=median,
        passed=median <= THRESHOLDS.incomplete.value,
    )


def _check_transfer_failure(session: Session) -> CheckResult:
    """Measure which images the attacked pipeline misclassifies and the score calls correct.

    Both go by the majority of draws. The share is of the images that the attacked pipeline
    misclassifies.
    """
    context, best = session.context, session.declared.best
    target = context.target(context.all_rows, stream="view")
    columns = []
    for _ in range(context.budget.score_draws):
        columns.append(target.logits(best.x_adv).argmax(1) != context.y)
    is_broken = torch.stack(columns).double().mean(0) > 0.5
    if not is_broken.any():
        return CheckResult(measured="no image is broken", value=0.0)
    is_correct = torch.from_numpy(best.scores > 0.5).to(is_broken.device)
    return _judge_share(is_correct[is_broken])


def _check_unbounded_failure(session: Session) -> CheckResult:
    context = session.context
    trace = trace_pgd(
        context.target(context.probe_rows, stream="free"),
        context.probe_x,
        context.probe_y,
        eps=1.0,
        steps=2 * TRACE_STEPS,
        loss=negative_margin,
    )
    share = (~trace.is_wrong.any(0)).double().mean().item()
    return CheckResult(
        measured=f"{100 * share:.1f} % of the images",
        value=share,
        passed=share <= THRESHOLDS.unbounded.value,
    )


CHECKS = (
    Check(
        name="unavailable gradients",
        question="Is the attack without a gradient at its first step?",
        weight="sign",
        threshold=_SHARE,
        source=_PINTOR,
        advice="Attack another loss, or another gradient",
        run=_check_unavailable_gradients,
    ),
    Check(
        name="unstable predictions",
        question="Does the loss jump in a small cube around the adversarial images?",
        weight="sign",
        threshold=f"<= {THRESHOLDS.unstable.value:g}, relative, capped at 1",
        source=_PINTOR,
        advice="The loss surface is too rough for one gradient: average over small changes",
        run=_check_unstable_predictions,
    ),
    Check(
        name="silent success",
        question="Was an image broken on the way and correct again at the end?",
        weight="sign",
        threshold=_SHARE,
        source=_PINTOR,
        advice="Keep the best iterate, not the last",
        run=_check_silent_success,
    ),
    Check(
        name="incomplete optimisation",
        question="Does the loss still grow over the last ten steps?",
        weight="sign",
        threshold=f"<= {THRESHOLDS.incomplete.value:g} of its range (median)",
        source=_PINTOR,
        advice="Attack with more steps",
        run=_check_incomplete_optimisation,
    ),
    Check(
        name="transfer failure",
        question="Are images that break the attacked pipeline correct in the scored one?",
        weight="sign",
        threshold=_SHARE,
        source=_PINTOR,
        advice="Attack the scored pipeline itself, with more copies",
        run=_check_transfer_failure,
    ),
    Check(
        name="unbounded failure",
        question="Is an image correct where everything is allowed?",
        weight="sign",
        threshold="<= 1 %",
        source=_PINTOR,
        advice="See the unbounded attack",
        run=_check_unbounded_failure,
    ),
)
