"""The declared gradient itself: finite, not zero, of a plausible size, reproducible, and useful.

An attack without a bound must break everything through it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from defend.ascent import ascend
from defend.auditing.context import NORM, Context, Floats
from defend.auditing.error_bars import least_share
from defend.auditing.frozen_noise import FROZEN_NOISE_CHECK, SLOPE_CHECK
from defend.auditing.session import Session
from defend.auditing.slopes import SMALLEST
from defend.auditing.thresholds import THRESHOLDS, Threshold
from defend.auditing.verdict import Check, CheckResult
from defend.gradients import Backward, identity
from defend.losses import negative_margin
from defend.norms import random_signs

UNBOUNDED_EPS = 1.0  # any image is in this L-inf ball
UNBOUNDED_STEPS = 100
STEP_FACTOR = 2.5  # one step has the length STEP_FACTOR * eps / steps
LARGEST = 1e300  # stands for an infinite ratio, so that a median can be taken


def checks(stochastic: bool) -> tuple[Check, ...]:
    """Return the checks; a noisy gradient is an error only if the purifier is deterministic."""
    return (
        UNBOUNDED_CHECK,
        FINITE_CHECK,
        ZERO_CHECK,
        DEAD_PIXELS_CHECK,
        SIZE_CHECK,
        NOISY_GRADIENT_CHECK if stochastic else REPLAYED_GRADIENT_CHECK,
        SLOPE_CHECK,
        FROZEN_NOISE_CHECK,
    )


def _check_unbounded(session: Session) -> CheckResult:
    """Attack at eps 1 from the clean image; compare with random directions and no gradient.

    The verdict depends on the attack alone. Random directions may also break nearly all of a few
    images, so losing to them is only reported. What an attack leaves on a few copies counts only if
    it is left with the most copies, too.
    """
    context = session.context
    x_adv = _attack_unbounded(context, context.all_rows, context.budget.eot)
    scores = context.score(x_adv)
    if _leaves_much(scores) and context.budget.max_eot > context.budget.eot:
        scores = _attack_rest_with_most_copies(context, x_adv, scores)
    accuracy = float(scores.mean())
    random_scores = context.score(_walk_randomly(context))
    zero_scores = context.clean_scores  # with a gradient of zero the image stays where it is
    beats_random = _beats(context, scores, random_scores)
    breaks_all = accuracy == 0 < zero_scores.mean()  # a test cannot say more about a few images
    beats_zero = breaks_all or _beats(context, scores, zero_scores)
    is_enough = bool(beats_zero and not _leaves_much(scores))
    return CheckResult(
        measured=f"leaves {100 * accuracy:.1f} %; random directions"
        f" {100 * random_scores.mean():.1f} %, zero gradients {100 * zero_scores.mean():.1f} %",
        value=accuracy,
        passed=is_enough and beats_random,
        advisory=is_enough,
    )


def _leaves_much(scores: Floats) -> bool:
    return least_share(scores) > THRESHOLDS.unbounded.value


def _attack_unbounded(context: Context, rows: Tensor, copies: int) -> Tensor:
    spec = f"pgd:steps={UNBOUNDED_STEPS},random_start=false"
    return context.attack(spec, context.target(rows, eot=copies), rows, eps=UNBOUNDED_EPS)


def _attack_rest_with_most_copies(context: Context, x_adv: Tensor, scores: Floats) -> Floats:
    """Return the scores (n,) after another attack on the images of x_adv that are not broken."""
    rows = torch.from_numpy(np.flatnonzero(scores > 0)).to(x_adv.device)
    again = x_adv.clone()
    again[rows] = _attack_unbounded(context, rows, context.budget.max_eot)
    return min(scores, context.score(again), key=np.mean)


def _walk_randomly(context: Context) -> Tensor:
    """Return the images after as many steps of the same size in random directions."""
    x_adv = context.x
    step = STEP_FACTOR / UNBOUNDED_STEPS
    for k in range(UNBOUNDED_STEPS):
        direction = random_signs(x_adv, context.noise.fork(f"walk {k}"))
        x_adv = ascend(x_adv, direction, step, context.x, UNBOUNDED_EPS, NORM)
    return x_adv


def _beats(context: Context, scores: Floats, control: Floats) -> bool:
    """Return True if the attack leaves significantly less than a control; there are two."""
    if scores.mean() >= control.mean():
        return False
    return context.p_value_of_attack(scores, control) < THRESHOLDS.alpha.value / 2


def probe_gradient(
    context: Context, backward: Backward | None = None, stream: str = "gradients"
) -> Tensor:
    """Return the gradient of the negative margin at the probe points: (b, pixels)."""
    target = context.target(context.probe_rows, backward, stream=stream)
    gradient, _, _ = target.gradient(context.probe_points, context.probe_y, negative_margin)
    return gradient.flatten(1)


def _check_finite(session: Session) -> CheckResult:
    is_bad = (~probe_gradient(session.context).isfinite()).any(1)
    share = is_bad.double().mean().item()
    return CheckResult(
        measured=f"{100 * share:.1f} % of the images have infinite or undefined gradients",
        value=share,
        passed=share == 0,
    )


def _check_zero(session: Session) -> CheckResult:
    is_zero = probe_gradient(session.context).abs().amax(1) == 0
    share = is_zero.double().mean().item()
    return CheckResult(
        measured=f"{100 * share:.1f} % of the images",
        value=share,
        passed=least_share(is_zero.double().cpu().numpy()) <= THRESHOLDS.zero.value,
    )


def _check_dead_pixels(session: Session) -> CheckResult:
    is_alive_without = probe_gradient(session.context, identity) != 0
    is_dead = (probe_gradient(session.context) == 0) & is_alive_without
    share = is_dead.double().sum().item() / max(1, int(is_alive_without.sum()))
    return CheckResult(
        measured=f"{100 * share:.1f} % of the pixels",
        value=share,
        passed=share <= THRESHOLDS.dead.value,
    )


def _check_size(session: Session) -> CheckResult:
    through = probe_gradient(session.context).double().abs().sum(1)
    past = probe_gradient(session.context, identity).double().abs().sum(1)
    ratios = (through / past.clamp(min=SMALLEST)).nan_to_num(nan=0.0, posinf=LARGEST)
    ratio = ratios.median().item()
    return CheckResult(
        measured=f"{ratio:.3g} times",
        value=ratio,
        passed=THRESHOLDS.vanishing.value <= ratio <= THRESHOLDS.exploding.value,
    )


def _check_noisy(session: Session) -> CheckResult:
    """Compare two independent gradients of the same images by the cosine between them."""
    context = session.context
    first = probe_gradient(context).double()
    second = probe_gradient(context, stream="gradients again").double()
    cosine = torch.nn.functional.cosine_similarity(first, second, dim=1, eps=SMALLEST)
    both_zero = (first.abs().amax(1) == 0) & (second.abs().amax(1) == 0)
    agreement = torch.where(both_zero, 1.0, cosine.nan_to_num(nan=0.0))
    median = agreement.median().item()
    return CheckResult(
        measured=f"cosine {median:.3f} with {context.budget.eot} copies",
        value=median,
        passed=median >= _cosine_threshold(context.stochastic).value,
    )


def _cosine_threshold(stochastic: bool) -> Threshold:
    return THRESHOLDS.cosine if stochastic else THRESHOLDS.replayed_cosine


UNBOUNDED_CHECK = Check(
    name="unbounded attack",
    question="Does an attack at eps 1, from the clean image itself, break everything?",
    weight="required",
    threshold=f"<= {100 * THRESHOLDS.unbounded.value:g} % left, at the lower end of the 95 %"
    " interval, and less than random and zero gradients of equal steps leave",
    source=THRESHOLDS.unbounded.source,
    advice="The gradient does not lead out of the class even where every image is allowed: it is"
    " masked",
    run=_check_unbounded,
)
FINITE_CHECK = Check(
    name="finite gradient",
    question="Is the gradient made of finite numbers?",
    weight="required",
    threshold="every image",
    source="Pintor et al., arXiv:2106.09947, indicator 1",
    advice="Find the overflow or the division by zero in the purifier",
    run=_check_finite,
)
ZERO_CHECK = Check(
    name="zero gradient",
    question="Is the gradient of any image zero?",
    weight="required",
    threshold=f"<= {100 * THRESHOLDS.zero.value:g} % of the images, at the lower end of the 95 %"
    " interval",
    source=THRESHOLDS.zero.source,
    advice="A step of the purifier cuts the gradient: use straight_through, or declare identity",
    run=_check_zero,
)
DEAD_PIXELS_CHECK = Check(
    name="dead pixels",
    question="Do pixels get no gradient that would have one without the purifier?",
    weight="sign",
    threshold=f"<= {100 * THRESHOLDS.dead.value:g} %",
    source=THRESHOLDS.dead.source,
    advice="Parts of the image are detached, or have no effect where they are, as behind a median:"
    " compare with BPDA",
    run=_check_dead_pixels,
)
SIZE_CHECK = Check(
    name="size of the gradient",
    question="Does the gradient vanish or explode on its way through the purifier?",
    weight="sign",
    threshold=f"{THRESHOLDS.vanishing.value:g} to {THRESHOLDS.exploding.value:g} of the one past"
    " the purifier (median of L1 norms)",
    source=THRESHOLDS.vanishing.source,
    advice="Rounding and overflow destroy such gradients: compare with BPDA",
    run=_check_size,
)
NOISY_GRADIENT_CHECK = Check(
    name="noisy gradient",
    question="Do two gradients of the same image agree?",
    weight="sign",
    threshold=f"cosine >= {THRESHOLDS.cosine.value:g} (median)",
    source=THRESHOLDS.cosine.source,
    advice="Average over more copies (--eot)",
    run=_check_noisy,
)
REPLAYED_GRADIENT_CHECK = Check(
    name="noisy gradient",
    question="Do two gradients of the same image agree?",
    weight="required",
    threshold=f"cosine >= {THRESHOLDS.replayed_cosine.value:g} (median)",
    source=THRESHOLDS.replayed_cosine.source,
    advice="The card says stochastic=False and the gradient is random: declare it",
    run=_check_noisy,
)
