"""The pipeline with its noise frozen: what a gradient and an attack are worth without chance."""

from __future__ import annotations

import numpy as np
import torch

from defend.auditing.context import Context, Floats
from defend.auditing.session import Session
from defend.auditing.slopes import correlate, declared_changes, frozen_target, measured_changes
from defend.auditing.thresholds import THRESHOLDS
from defend.auditing.verdict import Check, CheckResult, NotApplicable
from defend.stats import permutation


def _check_slope(session: Session) -> CheckResult:
    """Correlate the declared slope with finite differences, over images and directions."""
    context, x = session.context, session.context.probe_points
    correlation = correlate(declared_changes(context, x, None), measured_changes(context, x))
    return CheckResult(
        measured=f"correlation {correlation:.2f}",
        value=correlation,
        passed=correlation >= THRESHOLDS.slope.value,
    )


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
