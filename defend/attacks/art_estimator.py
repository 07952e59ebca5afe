"""Show a target to ART as one of ART's own classifiers, with purifier and gradient inside."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from defend.errors import BadParameter
from defend.noise import Noise
from defend.target import Target

NEEDS_PROBABILITIES = ("SimBA", "VirtualAdversarialMethod")  # ART attacks that refuse logits


class TargetModule(nn.Module):
    """Present a target to ART as a network: images in [0, 1] -> logits.

    An attack that may see labels only gets one-hot labels, and one that refuses logits gets
    probabilities. Every call draws fresh noise for each of its rows, since ART does not say which
    image a row is. Where ART differentiates, a stochastic target gives the mean logits over `eot`
    draws. The networks are not submodules, so ART cannot train, move or reset them.
    """

    def __init__(self, target: Target, access: str, attack: str) -> None:
        """attack: the class name of ART's attack."""
        super().__init__()
        self._target_holder = (target,)  # nn.Module registers no networks inside a tuple
        self._access = access
        self._attack = attack
        self._calls = 0

    def forward(self, x: Tensor) -> Tensor:
        (target,) = self._target_holder
        x = x.float()  # some of ART's attacks compute in float64
        if torch.is_grad_enabled() and x.requires_grad:
            return self._differentiable_logits(target, x)
        noise = self._fresh_noise(target, len(x))
        queried = Target(target.classifier, target.purifier, noise, counts=target.counts)
        logits = queried.logits(x)
        if self._access == "labels":
            return F.one_hot(logits.argmax(1), logits.shape[1]).to(x.dtype)
        return logits.softmax(1) if self._attack in NEEDS_PROBABILITIES else logits

    def _differentiable_logits(self, target: Target, x: Tensor) -> Tensor:
        if self._access != "gradient":
            raise BadParameter(
                f"art:name={self._attack}: expected no gradients with access={self._access}, "
                f"but the attack asked for gradients; write access=gradient"
            )
        copies = 1 if target.deterministic else target.eot
        noise = self._fresh_noise(target, len(x) * copies)

        def mean_logits(x: Tensor) -> Tensor:
            logits = target.classify(target.purified(x, noise, copies))
            return cast(Tensor, logits.unflatten(0, (len(x), copies)).mean(1))

        def count(kind: str) -> None:
            target.counts[kind] += len(x) * copies

        apply: Callable[..., Tensor] = _ImageGradient.apply
        return apply(x, mean_logits, count)

    def _fresh_noise(self, target: Target, rows: int) -> Noise:
        """Return noise for the rows of one call, derived from the first image's noise."""
        self._calls += 1
        noise = target.noise.take(slice(0, 1)).fork(f"call {self._calls}")
        return noise.nth(torch.arange(rows, device=target.noise.device)[None])


class _ImageGradient(torch.autograd.Function):
    """Compute logits(x) and differentiate it for x alone, without a gradient for the parameters."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, logits: Callable[[Tensor], Tensor], count: Callable[[str], None]
    ) -> Tensor:
        with torch.enable_grad():
            ctx.x = x.detach().requires_grad_()
            ctx.logits, ctx.count = logits(ctx.x), count
        count("forwards")
        return cast(Tensor, ctx.logits.detach())

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        ctx.count("backwards")
        if not ctx.logits.requires_grad:
            return torch.zeros_like(ctx.x), None, None
        # ART asks for the gradients class by class, so the graph is kept.
        (gradient,) = torch.autograd.grad(
            ctx.logits, ctx.x, g, retain_graph=True, materialize_grads=True
        )
        return gradient, None, None


def make_estimator(model: nn.Module, x: Tensor, classes: int) -> PyTorchClassifier:
    """Return ART's classifier for images like x (b, c, h, w)."""
    # The sum of the losses, not their mean: under the mean an image's gradient would shrink with
    # the batch, and ART's guards against division by zero would then change the result.
    loss = nn.CrossEntropyLoss(reduction="sum")
    return PyTorchClassifier(
        model,
        loss,
        tuple(x.shape[1:]),
        classes,
        clip_values=(0.0, 1.0),
        preprocessing=None,
        device_type="gpu" if x.is_cuda else "cpu",
    )


@cache
def make_dummy_estimator() -> PyTorchClassifier:
    """Return a classifier on which ART's attacks can check their parameters."""
    return make_estimator(nn.Flatten(), torch.zeros(1, 3, 32, 32), 4)
