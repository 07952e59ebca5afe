"""An active test: Zimmermann, Brendel, Tramer, Carlini, "Increasing Confidence in Adversarial Robustness Evaluations", arXiv:2206.13991.

For each image a linear head on frozen features is made, for which an adversarial image provably lies in the ball; the attack must find one.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from defend.audit.context import Context
from defend.audit.indicators import climb
from defend.audit.thresholds import THRESHOLDS
from defend.audit.verdict import Check, CheckResult, NotApplicable
from defend.noise import Noise

INSIDE = 0.95  # inner points lie in this share of the ball (paper, section 4.1)
STEPS = 100
RETRIES = 3  # boundary points tried until one can be told from the inner ones
RIDGE = 1e-3
WIDEST = 2048  # features: a head takes a matrix of their square


class Features(nn.Module):
    """What a network hands to its last linear layer; its logits where it has none."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
        self._last = linear[-1] if linear else None

    def forward(self, x: Tensor) -> Tensor:
        if self._last is None:
            return self.network(x).flatten(1)  # type: ignore[no-any-return]
        caught: list[Tensor] = []
        hook = self._last.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        try:
            self.network(x)
        finally:
            hook.remove()
        return caught[-1].flatten(1)


class Heads(nn.Module):
    """A head for each image: logits (-s, s), s > 0 where the features are on the side of the boundary point."""

    def __init__(self, features: Features, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.features, self.weight, self.bias = features, weight, bias  # (b, d), (b,)

    def forward(self, x: Tensor) -> Tensor:
        copies = len(x) // len(self.weight)  # the copies of one image stand together
        s = (self.features(x) * self.weight.repeat_interleave(copies, 0)).sum(
            1
        ) + self.bias.repeat_interleave(copies)
        return torch.stack([-s, s], 1)


def checks() -> list[Check]:
    t = THRESHOLDS
    return [
        Check(
            name="active test",
            question="Does the attack find adversarial images that are known to be there?",
            weight="sign",
            threshold=f">= {100 * t['active'].value:g} % found, and <= {100 * t['search'].value:g} % by random search",
            source=t["active"].source,
            advice="The attack misses what exists: a stronger attack, or another gradient, will find more",
            run=_active,
        )
    ]


def _active(context: Context) -> CheckResult:
    features = Features(context.network)
    found, searched, skipped = [], [], 0
    wide = _features(
        context, features, context.x[:1], context.root.take(context.all[:1]).fork("active width")
    ).shape[1]
    if wide > WIDEST:
        raise NotApplicable(
            f"{wide} features: more than {WIDEST} make a matrix too large for each image"
        )
    for rows in _chunks(context):
        weight, bias, told = _heads(context, features, rows)
        skipped += int((~told).sum())
        if not told.any():
            continue
        rows, heads = rows[told], Heads(features, weight[told], bias[told])
        searched.append(_search(context, heads, rows))
        target = context.target(rows, fork="active")
        target.classifier, target.scored = heads, False
        trace = climb(
            target, context.x[rows], torch.zeros_like(context.y[rows]), context.eps, STEPS, _side
        )
        found.append(trace.wrong.any(0))
    if not found:
        raise NotApplicable("no boundary point could be told from the inner ones")
    hit, lucky = torch.cat(found).double().mean().item(), torch.cat(searched).double().mean().item()
    measured = f"{100 * hit:.0f} % found, random search {100 * lucky:.0f} %, {skipped} of {context.plan.active} images without a head"
    return CheckResult(
        measured=measured,
        value=hit,
        ok=hit >= THRESHOLDS["active"].value and lucky <= THRESHOLDS["search"].value,
    )


def _side(logits: Tensor, _: Tensor) -> Tensor:
    """Rises towards the side of the boundary point."""
    return logits[:, 1]


def _chunks(context: Context) -> Iterator[Tensor]:
    """Rows that a target evaluates in one piece, their copies included: a head is found by its place."""
    yield from context.all[: context.budget.active].split(
        max(1, context.purifier.max_batch // max(1, context.budget.eot))
    )


def _heads(context: Context, features: Features, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (b, d), biases (b,), and whether the boundary point can be told from all inner ones (b,)."""
    inner = _at(
        context, features, rows, "inner", context.budget.inner, INSIDE, corners=False
    )  # (b, inner, d)
    weight, bias = inner.new_zeros(len(rows), inner.shape[2]), inner.new_zeros(len(rows))
    told = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    for k in range(RETRIES):
        edge = _at(context, features, rows, f"edge {k}", 1, 1.0, corners=True)[:, 0]
        w, b, apart = _separate(inner, edge)
        new = apart & ~told
        weight[new], bias[new], told = w[new], b[new], told | apart
    return weight, bias, told


def _separate(inner: Tensor, edge: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fisher's direction from the inner points (b, m, d) to the edge point (b, d), the bias half way between it and the nearest inner one."""
    mean = inner.mean(1, keepdim=True)
    centred = (inner - mean).double()
    scatter = centred.transpose(1, 2) @ centred / inner.shape[1]
    ridge = RIDGE * scatter.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
    eye = torch.eye(scatter.shape[1], dtype=scatter.dtype, device=scatter.device)
    w = torch.linalg.solve(scatter + ridge[:, None, None] * eye, (edge - mean[:, 0]).double())
    w = w / w.norm(dim=1, keepdim=True).clamp(min=1e-300)
    high, low = (edge.double() * w).sum(1), (inner.double() @ w[:, :, None])[:, :, 0].amax(1)
    return w.to(inner.dtype), (-(high + low) / 2).to(inner.dtype), high > low


def _search(context: Context, heads: Heads, rows: Tensor) -> Tensor:
    """Does any of as many random points of the ball lie on the other side? bool (b,)."""
    points = _at(context, heads.features, rows, "search", context.budget.inner, 1.0, corners=False)
    return ((points * heads.weight[:, None]).sum(2) + heads.bias[:, None] > 0).any(1)


def _at(
    context: Context,
    features: Features,
    rows: Tensor,
    fork: str,
    m: int,
    radius: float,
    corners: bool,
) -> Tensor:
    """Features (b, m, d) of m random points for each image: uniform in radius eps, or corners of that cube."""
    few = max(1, context.purifier.max_batch // m)  # images at a time: each takes m points
    return torch.cat(
        [_of_some(context, features, some, fork, m, radius, corners) for some in rows.split(few)]
    )


def _of_some(
    context: Context,
    features: Features,
    rows: Tensor,
    fork: str,
    m: int,
    radius: float,
    corners: bool,
) -> Tensor:
    x, noise = context.x[rows], context.root.take(rows).fork(f"active {fork}")
    wide = x.repeat_interleave(m, 0)
    u = 2 * noise.copies(m).uniform(wide) - 1
    points = (wide + radius * context.eps * (u.sign() if corners else u)).clamp(0, 1)
    found: Tensor = torch.cat(
        [
            _features(context, features, p, n)
            for p, n in _cuts(context, points, noise.fork("draws").copies(m))
        ]
    )
    return found.view(len(rows), m, -1)


def _cuts(context: Context, points: Tensor, noise: Noise) -> Iterator[tuple[Tensor, Noise]]:
    size = context.purifier.max_batch
    return zip(points.split(size), noise.split(size), strict=True)


def _features(context: Context, features: Features, points: Tensor, noise: Noise) -> Tensor:
    with torch.no_grad():
        return features(context.purified(points, noise))  # type: ignore[no-any-return]
