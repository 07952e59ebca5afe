"""An active test: does the attack find adversarial images that provably exist?

Zimmermann, Brendel, Tramer, Carlini, "Increasing Confidence in Adversarial Robustness Evaluations",
arXiv:2206.13991. For each image a linear head on frozen features separates one point on the
boundary of the ball, which it labels as adversarial, from points inside the ball.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from defend.auditing.active_heads import Features, HeadClassifier, Heads, separate
from defend.auditing.context import Context
from defend.auditing.pgd_trace import trace_pgd
from defend.auditing.session import Session
from defend.auditing.thresholds import THRESHOLDS
from defend.auditing.verdict import Check, CheckResult, NotApplicable
from defend.noise import Noise

INNER_RADIUS = 0.95  # inner points lie in this share of the ball (paper, section 4.1)
STEPS = 100
ATTEMPTS = 3  # boundary points tried for each image, until one can be separated
MAX_FEATURES = 2048  # a head solves a linear system of this size for each image


@dataclass(frozen=True)
class PointSet:
    """How random points around an image are drawn."""

    stream: str  # the name of their noise
    count: int  # for each image
    radius: float  # in eps
    corners: bool  # corners of the cube, or uniform in it


def _check_active(session: Session) -> CheckResult:
    context = session.context
    features = Features(context.network)
    _check_width(context, features)
    successes: list[Tensor] = []  # the attack found an adversarial image, bool
    random_successes: list[Tensor] = []
    without_head = 0
    for rows in _batches(context):
        heads = fit_heads(context, features, rows)
        without_head += int((~heads.separable).sum())
        if not heads.separable.any():
            continue
        rows, heads = rows[heads.separable], heads.take(heads.separable)
        random_successes.append(_search_randomly(context, features, heads, rows))
        successes.append(_attack(context, HeadClassifier(features, heads), rows))
    if not successes:
        raise NotApplicable("no boundary point could be separated from the inner points")
    attack_share = torch.cat(successes).double().mean().item()
    random_share = torch.cat(random_successes).double().mean().item()
    return _judge(context, attack_share, random_share, without_head)


def _judge(
    context: Context, attack_share: float, random_share: float, without_head: int
) -> CheckResult:
    is_found = attack_share >= THRESHOLDS.active.value
    is_hard = random_share <= THRESHOLDS.search.value
    return CheckResult(
        measured=f"{100 * attack_share:.0f} % found, random search {100 * random_share:.0f} %,"
        f" {without_head} of {context.budget.active_images} images left out, for which no binary"
        " classifier could be fitted",
        value=attack_share,
        passed=is_found and is_hard,
    )


def _check_width(context: Context, features: Features) -> None:
    """Raise NotApplicable if there are too many features for a head."""
    row = context.all_rows[:1]
    noise = context.noise.take(row).fork("active width")
    count = _purified_features(context, features, context.x[:1], noise).shape[1]
    if count > MAX_FEATURES:
        raise NotApplicable(
            f"{count} features: more than {MAX_FEATURES} make a matrix too large for each image"
        )


def _batches(context: Context) -> Iterator[Tensor]:
    """Yield rows that a target evaluates in one batch, with their EOT copies.

    A head belongs to a position of the batch, so that a batch must not be cut.
    """
    size = max(1, context.purifier.images_at_once(context.x) // max(1, context.budget.eot))
    yield from context.all_rows[: context.budget.active_images].split(size)


def _attack(context: Context, classifier: HeadClassifier, rows: Tensor) -> Tensor:
    """Return True for images that PGD moves to the adversarial side at any step: bool (b,)."""
    target = context.target(rows, stream="active")
    target.classifier, target.scored = classifier, False
    inner_label = torch.zeros_like(context.y[rows])
    trace = trace_pgd(target, context.x[rows], inner_label, context.eps, STEPS, _adversarial_logit)
    return trace.is_wrong.any(0)


def _adversarial_logit(logits: Tensor, _: Tensor) -> Tensor:
    return logits[:, 1]


def _search_randomly(context: Context, features: Features, heads: Heads, rows: Tensor) -> Tensor:
    """Return True for images with a random point on the adversarial side: bool (b,)."""
    points = PointSet("search", context.budget.inner_points, 1.0, corners=False)
    values = features_around(context, features, rows, points)  # (b, points, d)
    sides = (values * heads.weight[:, None]).sum(2) + heads.bias[:, None]
    return (sides > 0).any(1)


def fit_heads(context: Context, features: Features, rows: Tensor) -> Heads:
    """Return a head for each image, from the first boundary point that it can separate."""
    inner_points = PointSet("inner", context.budget.inner_points, INNER_RADIUS, corners=False)
    inner = features_around(context, features, rows, inner_points)  # (b, points, d)
    weight, bias = inner.new_zeros(len(rows), inner.shape[2]), inner.new_zeros(len(rows))
    separable = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    for attempt in range(ATTEMPTS):
        edge_point = PointSet(f"edge {attempt}", 1, 1.0, corners=True)
        edge = features_around(context, features, rows, edge_point)[:, 0]
        heads = separate(inner, edge)
        is_new = heads.separable & ~separable
        weight[is_new], bias[is_new] = heads.weight[is_new], heads.bias[is_new]
        separable = separable | heads.separable
    return Heads(weight, bias, separable)


def features_around(context: Context, features: Features, rows: Tensor, points: PointSet) -> Tensor:
    """Return the features (b, points, d) of random points around each image."""
    images_at_once = max(1, context.purifier.images_at_once(context.x) // points.count)
    parts = [_features_of(context, features, r, points) for r in rows.split(images_at_once)]
    return torch.cat(parts)


def _features_of(context: Context, features: Features, rows: Tensor, points: PointSet) -> Tensor:
    x = context.x[rows].repeat_interleave(points.count, 0)
    noise = context.noise.take(rows).fork(f"active {points.stream}")
    offsets = 2 * noise.copies(points.count).uniform(x) - 1
    if points.corners:
        offsets = offsets.sign()
    x = (x + points.radius * context.eps * offsets).clamp(0, 1)
    draws = noise.fork("draws").copies(points.count)
    size = context.purifier.images_at_once(x)
    parts = []
    for part, part_noise in zip(x.split(size), draws.split(size), strict=True):
        parts.append(_purified_features(context, features, part, part_noise))
    return torch.cat(parts).view(len(rows), points.count, -1)


def _purified_features(context: Context, features: Features, x: Tensor, noise: Noise) -> Tensor:
    with torch.no_grad():
        return features(context.purify(x, noise))  # type: ignore[no-any-return]


CHECK = Check(
    name="active test",
    question="Does the attack find adversarial images that are known to exist?",
    weight="sign",
    threshold=f">= {100 * THRESHOLDS.active.value:g} % found, and"
    f" <= {100 * THRESHOLDS.search.value:g} % by random search",
    source=THRESHOLDS.active.source,
    advice="The attack misses existing adversarial images: a stronger attack, or another gradient,"
    " will find more",
    run=_check_active,
)
