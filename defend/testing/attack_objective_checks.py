"""Checks that an attack climbs the objective that its card names. Each check takes one attack.

"label" is checked by the strength of attacks on classifiers. The worst perturbation of a linear
codec is known: in L2 it is the first singular vector of the codec.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from defend.attack import Attack
from defend.distortion import mse
from defend.errors import Mismatch
from defend.noise import Noise
from defend.norms import norm_of, per_image, random_signs
from defend.purifier import Card, Purifier
from defend.target import Target
from defend.tasks.identification import Identification
from defend.testing.attack_setup import (
    ALL_ROWS,
    EPS,
    NOT_SCORED,
    PIXELS,
    RECONSTRUCTION,
    attacked,
    linear_classifier,
    predicted_labels,
    random_images,
)
from defend.testing.runner import NotApplicable

# How many times the error must be that of random signs of the same length. Along the first
# singular vector it is 8 times as large, along random directions nearly 1 time.
LEAST_RATIO = 1.5
STRONGEST = 3.0  # the first singular value of the codec; all others are 1


class LinearCodec(Purifier):
    """R(x) = x + (s - 1) <v, x - 1/2> v, with v of length 1: the first singular value is s."""

    card = Card(paper="none: for checks", gradient="exact", stochastic=False)

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        v = strongest_direction()
        along = (x - 0.5).flatten(1) @ v.flatten()
        return x + (STRONGEST - 1) * per_image(along, x) * v


def strongest_direction() -> Tensor:
    """Return the first singular vector (c, h, w) of the codec: half of its pixels are zero."""
    v = torch.randn(PIXELS, generator=torch.Generator().manual_seed(3))
    v[PIXELS // 2 :] = 0
    direction: Tensor = (v / v.norm()).view(random_images().shape[1:])
    return direction


def codec_target() -> Target:
    """Return the linear codec at the task reconstruction, not scored."""
    noise = Noise.of(5, ALL_ROWS).fork("attack")
    return Target(nn.Identity(), LinearCodec(), noise, task=RECONSTRUCTION)


def shift(x_adv: Tensor, x: Tensor) -> Tensor:
    """Return MSE(R(x'), R(x)) of the linear codec: (b,)."""
    codec, noise = LinearCodec(), Noise.of(5, ALL_ROWS[: len(x)])
    return mse(codec.purify(x_adv, noise), codec.purify(x, noise))


def check_makes_a_reconstruction_wrong(attack: Attack) -> None:
    """Fail if a perturbation moves a reconstruction hardly more than random signs of its length.

    For attacks on any task, and on codecs.
    """
    if attack.card.objective == "label":
        raise NotApplicable("its card says objective='label'")
    x, eps = random_images(), EPS[attack.norm]
    noise = Noise.of(6, ALL_ROWS).fork("start")
    x_adv = attack.run(codec_target(), x, x, eps, noise)
    signs = random_signs(x, noise.fork("signs"))
    length = norm_of(x_adv - x, "L2") / norm_of(signs, "L2")
    at_random = shift(x + per_image(length, x) * signs, x)
    ratio = (shift(x_adv, x) / at_random).min().item()
    assert ratio >= LEAST_RATIO, (
        f"expected an error of the reconstruction of at least {LEAST_RATIO} times that of random"
        f" signs, got {ratio:.2f} times; climb the loss of the task, or the distortion"
    )


def check_climbs_the_loss_of_its_task(attack: Attack) -> None:
    """Fail if an attack on any task climbs another loss than that of its task.

    At impersonation, what leads away from the right person need not lead to the target.
    """
    if attack.card.objective != "task":
        raise NotApplicable(f"its card says objective={attack.card.objective!r}")
    if attack.card.access != "gradient":
        raise NotApplicable("it climbs no loss")
    task, model, x = Identification(goal="impersonation"), linear_classifier(6), random_images()
    target = replace(NOT_SCORED.target(model), task=task)
    reference = task.reference(x, predicted_labels(x, 6), 6)
    x_adv = attacked(attack, x, reference, target)
    gain = task.loss(model(x_adv), reference) - task.loss(model(x), reference)
    assert gain.min() > 0, (
        f"expected the loss of the task to rise for every image, got {int((gain <= 0).sum())} of"
        f" {len(gain)} for which it did not; climb target.loss, or set objective='label'"
    )


def check_refuses_a_task_without_its_objective(attack: Attack) -> None:
    """Fail if an attack on reconstructions accepts a classifier, whose logits are none."""
    if attack.card.objective != "distortion":
        raise NotApplicable(f"its card says objective={attack.card.objective!r}")
    x = random_images()
    try:
        attack.run(NOT_SCORED.target(), x, predicted_labels(x), 0.1, Noise.of(6, ALL_ROWS))
    except Mismatch:
        return
    raise AssertionError("expected Mismatch before a classifier, got images; raise it in run")
