"""Checks of how an attack uses its target: what it counts, what it shares between eps, and what it
looks at. Each check takes one attack.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defend.attack import Attack
from defend.noise import Noise
from defend.testing.attack_setup import (
    ALL_ROWS,
    EPS,
    NOT_SCORED,
    at_its_task,
    attacked,
    half_wrong_labels,
    linear_classifier,
    pipelines_for,
    predicted_labels,
    random_images,
)
from defend.testing.runner import NotApplicable


class _Counting(nn.Module):
    """The linear classifier, which counts its forward and backward passes for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.net = linear_classifier()
        self.counts = {"forwards": 0, "backwards": 0}

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(x)
        self.counts["forwards"] += len(x)
        if z.requires_grad:
            z.register_hook(self._count_backward)
        return z

    def _count_backward(self, gradient: Tensor) -> None:
        self.counts["backwards"] += len(gradient)


def check_counts_are_what_the_model_saw(attack: Attack) -> None:
    """Fail if `target.counts` differs from the passes through the model."""
    x, y = random_images(), half_wrong_labels(random_images())
    for pipeline in pipelines_for(attack):
        model = _Counting()
        target = pipeline.target(model)
        attacked(attack, x, y, target)
        assert target.counts == model.counts, (
            f"expected counts of {model.counts} as the model saw, got {target.counts}; "
            "ask the target, not its classifier"
        )
        assert model.counts["forwards"] > 0, "the attack never queried the model"


def check_a_sweep_gives_what_each_eps_gives_alone(attack: Attack) -> None:
    """Fail if a sweep gives another result, or other counts, than a run for each eps."""
    x, y = random_images(), half_wrong_labels(random_images())
    epsilons = [EPS[attack.norm] * share for share in (0.3, 1, 0.6)]
    for pipeline in pipelines_for(attack):
        target, reference = at_its_task(attack, pipeline.target(), x, y)
        swept, noise = [], Noise.of(6, ALL_ROWS).fork("start")
        for adv in attack.sweep(target, x, reference, epsilons, noise):
            swept.append((adv.clone(), dict(target.counts)))
        assert len(swept) == len(epsilons), (
            f"expected {len(epsilons)} results of a sweep, got {len(swept)}"
        )
        for eps, (adv, counts) in zip(epsilons, swept, strict=True):
            target = pipeline.target()
            assert torch.equal(adv, attacked(attack, x, y, target, eps)), (
                f"eps {eps:.3g} gives another result in a sweep than alone"
            )
            assert counts == target.counts, (
                f"eps {eps:.3g}: expected counts of {target.counts} as alone, got {counts}"
            )


class _NoGradient(torch.autograd.Function):
    """The identity, which fails in the backward pass."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return z.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        raise AssertionError("took a gradient; its card says that it needs none")


class _WithoutGradient(nn.Module):
    """The linear classifier without a gradient.

    labels_only: the logits say the predicted class and nothing else.
    """

    def __init__(self, *, labels_only: bool) -> None:
        super().__init__()
        self.net = linear_classifier()
        self.labels_only = labels_only

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(x)
        if self.labels_only:
            z = 9.0 * F.one_hot(z.argmax(1), 2)
        return cast(Tensor, _NoGradient.apply(z))  # type: ignore[no-untyped-call]


def check_needs_no_more_than_its_access(attack: Attack) -> None:
    """Fail if an attack takes a gradient, or uses scores, against the access on its card."""
    if attack.card.access == "gradient":
        raise NotApplicable("its access is gradient")
    x, y = random_images(), predicted_labels(random_images())
    # The model raises if the attack takes a gradient.
    with_scores = attacked(attack, x, y, NOT_SCORED.target(_WithoutGradient(labels_only=False)))
    if attack.card.access == "labels":
        labels_only = attacked(attack, x, y, NOT_SCORED.target(_WithoutGradient(labels_only=True)))
        assert torch.equal(with_scores, labels_only), (
            "its card says access='labels', but the scores change its result; correct the card"
        )
