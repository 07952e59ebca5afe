"""Linear heads on a network's features, one for each image, for the active test."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

RIDGE = 1e-3  # of the mean variance, added to the scatter matrix
SMALLEST_VARIANCE = 1e-12
SMALLEST_NORM = 1e-300


class Features(nn.Module):
    """The input of a network's last linear layer, or its logits if it has no such layer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
        self._last = linear[-1] if linear else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (b, d) of images (b, c, h, w)."""
        if self._last is None:
            return self.network(x).flatten(1)  # type: ignore[no-any-return]
        inputs: list[Tensor] = []
        hook = self._last.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        try:
            self.network(x)
        finally:
            hook.remove()
        return inputs[-1].flatten(1)


@dataclass(frozen=True)
class Heads:
    """One head for each image; an image is adversarial where weight . features + bias > 0."""

    weight: Tensor  # (b, d)
    bias: Tensor  # (b,)
    separable: Tensor  # bool (b,): the head separates the boundary point from all inner points

    def take(self, mask: Tensor) -> Heads:
        """Return the heads of some images."""
        return Heads(self.weight[mask], self.bias[mask], self.separable[mask])


class HeadClassifier(nn.Module):
    """A classifier with a head of its own for each image: logits (-s, s), s the head's output."""

    def __init__(self, features: Features, heads: Heads) -> None:
        super().__init__()
        self.features = features
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (b * copies, 2); the copies of one image stand side by side."""
        copies = len(x) // len(self.heads.weight)
        weight = self.heads.weight.repeat_interleave(copies, 0)
        bias = self.heads.bias.repeat_interleave(copies)
        s = (self.features(x) * weight).sum(1) + bias
        return torch.stack([-s, s], 1)


def separate(inner: Tensor, edge: Tensor) -> Heads:
    """Return heads along Fisher's direction from inner points (b, m, d) to one point (b, d).

    The bias lies half way between the edge point and the nearest inner point.
    """
    mean = inner.mean(1, keepdim=True)
    centred = (inner - mean).double()
    scatter = centred.transpose(1, 2) @ centred / inner.shape[1]
    variance = scatter.diagonal(dim1=1, dim2=2).mean(1).clamp(min=SMALLEST_VARIANCE)
    eye = torch.eye(scatter.shape[1], dtype=scatter.dtype, device=scatter.device)
    regularised = scatter + (RIDGE * variance)[:, None, None] * eye
    weight = torch.linalg.solve(regularised, (edge - mean[:, 0]).double())
    weight = weight / weight.norm(dim=1, keepdim=True).clamp(min=SMALLEST_NORM)
    high = (edge.double() * weight).sum(1)
    low = (inner.double() @ weight[:, :, None])[:, :, 0].amax(1)
    bias = -(high + low) / 2
    return Heads(weight.to(inner.dtype), bias.to(inner.dtype), high > low)
