"""Checks that an attack keeps its budget and leaves everything but its result alone. Each check
takes one attack.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from defend.attack import Attack
from defend.norms import norm_of, tolerance
from defend.testing.attack_setup import (
    ALL_ROWS,
    EPS,
    IMAGES,
    NOT_SCORED,
    SCORED,
    attacked,
    half_wrong_labels,
    images_at_the_box,
    linear_classifier,
    pipelines_for,
    random_images,
)
from defend.testing.rng import global_states
from defend.testing.runner import NotApplicable


def check_stays_in_the_ball(attack: Attack) -> None:
    """Fail if an adversarial image leaves the eps ball."""
    for x in (random_images(), images_at_the_box()):
        for eps in (1e-3, EPS[attack.norm], 10 * EPS[attack.norm]):
            for pipeline in (NOT_SCORED, SCORED):
                adv = attacked(attack, x, half_wrong_labels(x), pipeline.target(), eps)
                largest = norm_of(adv.double() - x.double(), attack.norm).max().item()
                assert largest <= eps + tolerance(eps, attack.norm), (
                    f"left the {attack.norm} ball: expected at most {eps}, got {largest:.6g}; "
                    "project on the ball"
                )


def check_stays_in_the_box(attack: Attack) -> None:
    """Fail if a pixel leaves [0, 1] or is not finite."""
    x = images_at_the_box()
    for eps in (EPS[attack.norm], 10 * EPS[attack.norm]):
        adv = attacked(attack, x, half_wrong_labels(x), eps=eps)
        assert adv.isfinite().all(), "expected finite pixels, got NaN or inf"
        assert adv.min() >= 0 and adv.max() <= 1, (
            f"expected pixels in [0, 1], got {adv.min():.6g} to {adv.max():.6g}; clamp them"
        )


def check_eps_zero_returns_the_input(attack: Attack) -> None:
    """Fail if eps 0 changes an image."""
    for x in (random_images(), images_at_the_box()):
        adv = attacked(attack, x, half_wrong_labels(x), eps=0.0)
        assert torch.equal(adv, x), "eps 0 changed the images"


def check_same_seed_same_result(attack: Attack) -> None:
    """Fail if the same noise gives two results."""
    x, y = random_images(), half_wrong_labels(random_images())
    for pipeline in pipelines_for(attack):
        first = attacked(attack, x, y, pipeline.target())
        second = attacked(attack, x, y, pipeline.target())
        assert torch.equal(first, second), (
            "the same noise gives another result; draw all randomness from `noise` and the target"
        )


def check_leaves_the_model_alone(attack: Attack) -> None:
    """Fail if the attack changes the model's mode, parameters, gradients or requires_grad."""

    def state() -> list[Any]:
        modes = [m.training for m in model.modules()]
        return [modes, [(p.requires_grad, p.grad, p.tolist()) for p in model.parameters()]]

    model = nn.Sequential(linear_classifier().requires_grad_(True), nn.Identity()).train()
    before = state()
    x = random_images()
    attacked(attack, x, half_wrong_labels(x), NOT_SCORED.target(model))
    assert state() == before, (
        "changed the model's mode, its parameters, their gradients or requires_grad; "
        "ask the target for gradients"
    )


def check_leaves_input_and_global_rng_alone(attack: Attack) -> None:
    """Fail if the attack writes into x or y, or moves a global random generator."""
    x, y = random_images(), half_wrong_labels(random_images())
    x_before, y_before, states_before = x.clone(), y.clone(), global_states()
    attacked(attack, x, y)
    assert torch.equal(x, x_before), "wrote into the images; work on a copy"
    assert torch.equal(y, y_before), "wrote into the labels; work on a copy"
    assert global_states() == states_before, (
        "moved the global random state of torch, numpy or random; draw from `noise`"
    )


def check_keeps_shape_dtype_and_order(attack: Attack) -> None:
    """Fail if the result has another shape, dtype, device or order than the images."""
    for n in (1, IMAGES):
        # The brightness differs, so that each adversarial image is nearest to its own clean image.
        brightness = torch.linspace(-0.2, 0.2, n).view(-1, 1, 1, 1)
        x, rows = random_images()[:n] + brightness, ALL_ROWS[:n]
        adv = attacked(attack, x, half_wrong_labels(x), rows=rows)
        assert (adv.shape, adv.dtype, adv.device) == (x.shape, x.dtype, x.device), (
            f"expected {x.dtype} {tuple(x.shape)} on {x.device}, "
            f"got {adv.dtype} {tuple(adv.shape)} on {adv.device}"
        )
        nearest = torch.cdist(adv.flatten(1), x.flatten(1)).argmin(1)
        assert torch.equal(nearest, rows), "the images came back in another order"


def check_batch_mates_do_not_matter(attack: Attack) -> None:
    """Fail if an image alone gets another result than in a batch."""
    x, y = _images_if_per_image(attack), half_wrong_labels(random_images())
    one_of_each_label = [(y == label).nonzero()[-1] for label in (0, 1)]
    for pipeline in pipelines_for(attack):
        alone = [
            attacked(attack, x[row], y[row], pipeline.target(rows=row), rows=row)
            for row in one_of_each_label
        ]
        together = attacked(attack, x, y, pipeline.target())
        assert torch.allclose(
            together[torch.cat(one_of_each_label)], torch.cat(alone), atol=1e-5
        ), "an image's result, or its noise, depends on the other images of its batch"


def check_order_does_not_matter(attack: Attack) -> None:
    """Fail if another order of the batch changes more than the order of the result."""
    x, y = _images_if_per_image(attack), half_wrong_labels(random_images())
    order = ALL_ROWS.flip(0).roll(5)
    for pipeline in pipelines_for(attack):
        permuted = attacked(attack, x[order], y[order], pipeline.target(rows=order), rows=order)
        straight = attacked(attack, x, y, pipeline.target())
        assert torch.allclose(straight[order], permuted, atol=1e-5), (
            "an image's result, or its noise, depends on its place in the batch"
        )


def _images_if_per_image(attack: Attack) -> Tensor:
    """Return the images. Raise NotApplicable if the attack draws by row and call."""
    if not attack.card.per_image:
        raise NotApplicable("its card says per_image=False: it draws by row and call, not by image")
    return random_images()
