"""The pipeline with its noise frozen: what a gradient and an attack are worth without chance."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from defend.auditing.context import Context, Floats
from defend.auditing.session import Session
from defend.auditing.spsa import WIDTH
from defend.auditing.thresholds import THRESHOLDS
from defend.auditing.verdict import Check, CheckResult, NotApplicable
from defend.losses import negative_margin
from defend.norms import random_signs
from defend.stats import permutation
from defend.target import Target

DIRECTIONS = 20  # of finite differences, for each image
SMALLEST = 1e-300  # avoids 0 / 0


class FrozenTarget(Target):
    """A target that uses the same draw at every call, as if the attacker knew the noise."""

    def _advance(self, n: int) -> Tensor:
        return torch.zeros_like(self._rows)


def frozen_target(context: Context, rows: Tensor) -> FrozenTarget:
    """Return the audited pipeline on one draw of these rows."""
    noise = context.noise.take(rows).fork("frozen")
    return FrozenTarget(context.network, context.purifier, noise, scored=True)


def _check_slope(session: Session) -> CheckResult:
    """Correlate the declared slope with finite differences, over images and directions."""
    declared, measured = _measure_slopes(session.context)
    slopes = torch.stack([declared, measured])  # (2, images, directions)
    scale = slopes.square().mean(2, keepdim=True).sqrt().clamp(min=SMALLEST)
    slopes = slopes / scale  # so that each image counts the same
    correlation = float(torch.corrcoef(slopes.flatten(1))[0, 1].nan_to_num(nan=0.0))
    return CheckResult(
        measured=f"correlation {correlation:.2f}",
        value=correlation,
        passed=correlation >= THRESHOLDS.slope.value,
    )


def _measure_slopes(context: Context) -> tuple[Tensor, Tensor]:
    """Return the declared changes of the loss and the measured ones, each (images, directions).

    Along each direction u: g (x_high - x_low) beside f(x_high) - f(x_low), on the same draw, where
    x_high and x_low are x + h u and x - h u in the box.
    """
    x, y = context.probe_points, context.probe_y
    h = WIDTH * context.eps
    target = frozen_target(context, context.probe_rows)
    noise = context.noise.take(context.probe_rows).fork("directions")
    gradient, _, _ = target.gradient(x, y, negative_margin)
    declared, measured = [], []
    for k in range(DIRECTIONS):
        u = random_signs(x, noise.fork(str(k)))
        high, low = (x + h * u).clamp(0, 1), (x - h * u).clamp(0, 1)
        declared.append((gradient * (high - low)).flatten(1).double().sum(1))
        loss_high = negative_margin(target.logits(high), y)
        loss_low = negative_margin(target.logits(low), y)
        measured.append((loss_high - loss_low).double())
    return torch.stack(declared, 1), torch.stack(measured, 1)


def _check_frozen_noise(session: Session) -> CheckResult:
    """Attack with the noise frozen: an attacker who knows the noise must not break fewer images."""
    context, declared = session.context, session.declared
    if not context.stochastic:
        raise NotApplicable("the purifier is deterministic")
    correct = _attack_frozen(context)
    accuracy = correct.mean()
    breaks_fewer = accuracy > declared.best.accuracy
    is_significant = permutation(correct, declared.best.scores) < THRESHOLDS.alpha.value
    resists = accuracy > THRESHOLDS.frozen.value * declared.clean_accuracy
    return CheckResult(
        measured=f"leaves {100 * accuracy:.1f} %, fresh noise {100 * declared.best.accuracy:.1f} %",
        value=float(accuracy),
        passed=not (breaks_fewer and is_significant and resists),
    )


def _attack_frozen(context: Context) -> Floats:
    """Return 1 for images that are still correct on the frozen draw, else 0: (n,)."""
    rows = context.all_rows
    x_adv = context.attack("pgd:steps=40", frozen_target(context, rows), rows)
    with torch.no_grad():
        predictions = frozen_target(context, rows).logits(x_adv).argmax(1)
    return np.asarray((predictions == context.y).cpu().numpy(), np.float64)


SLOPE_CHECK = Check(
    name="slope",
    question="Is the gradient the slope of the loss that is scored?",
    weight="sign",
    threshold=f"correlation with finite differences >= {THRESHOLDS.slope.value:g}",
    source=THRESHOLDS.slope.source,
    advice="The declared gradient points elsewhere: compare with BPDA, the learned gradient and"
    " Square",
    run=_check_slope,
)
FROZEN_NOISE_CHECK = Check(
    name="frozen noise",
    question="With the noise frozen and known, does the attack succeed at least as often?",
    weight="sign",
    threshold="not significantly fewer images broken, or at most"
    f" {100 * THRESHOLDS.frozen.value:g} % of the clean accuracy left",
    source="Athalye et al., arXiv:1802.00420, section 3.1;"
    " Carlini et al., arXiv:1902.06705, section 5",
    advice="The gradient, and not the noise, stops the attack",
    run=_check_frozen_noise,
)
