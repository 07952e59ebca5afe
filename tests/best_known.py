"""The best attack that is known for a purifier, masked or not: what really remains correct.

It attacks through the honest pipeline, past the purifier, through the purifier's own gradient with
few copies and with many, through `purify` itself, and on the bare classifier.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import defend
from defend import Noise, Purifier, Target, identity
from defend.gradients import PlainAutograd, Relaxed
from defend.losses import cross_entropy, negative_margin
from defend.norms import project, random_start
from defend.results.candidates import worst_outcomes
from defend.results.outcomes import Outcomes

NEGLIGIBLE = 0.005  # accuracy below which no further attack can matter
TINY = 1e-6  # the change of each pixel in a neighbouring version of an image
NEIGHBOURS = 10
EOT = 20
MANY_COPIES = 80


@dataclass(frozen=True)
class Problem:
    """What is attacked, and how long."""

    purifier: Purifier
    network: nn.Module
    x: Tensor
    y: Tensor
    eps: float
    steps: int


@dataclass(frozen=True)
class Route:
    """A pipeline to attack, and the gradient that replaces its declared one (None: none does)."""

    purifier: Purifier
    backward: Any
    eot: int = EOT


def best_known(
    purifier: Purifier,
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    steps: int = 100,
    draws: int = 10,
) -> np.ndarray:
    """Return for each image the share of draws in which it is correct in the worst case: (n,).

    The worst attempt is chosen on other draws, as the bench chooses it. The lowest share of so many
    attempts would be that of the luckiest, not of the strongest.
    """
    problem = Problem(purifier, network, x, y, eps, steps)
    clean_select = _classify_draws(problem, x, draws, seed=0)
    clean_score = _classify_draws(problem, x, draws, seed=1)
    outcomes: list[Outcomes] = []
    for number, x_adv in enumerate(attack_in_every_way(problem)):
        outcomes.append(
            Outcomes(
                select=_classify_draws(problem, x_adv, draws, seed=0),
                score=_classify_draws(problem, x_adv, draws, seed=1),
                clean_select=clean_select,
                clean_score=clean_score,
                x_adv=(str(number),),
            )
        )
        shares = worst_outcomes(outcomes).mean(1)
        if shares.mean() < NEGLIGIBLE:
            break
    return shares


def attack_in_every_way(problem: Problem) -> Iterator[Tensor]:
    """Yield adversarial images of every attempt, as they are and on the grid of 256 levels.

    Those of the honest pipeline also come in ten versions that differ by a millionth.
    """
    for number, route in enumerate(_routes(problem.purifier, problem.x[:2])):
        for loss in (cross_entropy, negative_margin):
            x_adv = _run_pgd(problem, route, loss, seed=number)
            yield x_adv
            yield _round_to_8_bit(x_adv, problem.x)
            if number == 0:
                yield from _neighbours(problem, x_adv)


def _routes(purifier: Purifier, images: Tensor) -> list[Route]:
    bare = defend.load("none")
    honest = purifier.honest() if hasattr(purifier, "honest") else bare
    return [
        Route(honest, None),
        Route(bare, None),
        Route(purifier, identity),
        Route(purifier, None),
        Route(purifier, None, MANY_COPIES),
        *_routes_through_purify(purifier, images),
    ]


def _routes_through_purify(purifier: Purifier, images: Tensor) -> Iterator[Route]:
    """Yield the ways to differentiate `purify` itself, where they give a gradient."""
    ways: list[Any] = [PlainAutograd(), PlainAutograd(past_replacements=True)]
    if purifier.has_relaxation:
        ways.append(Relaxed(0.3))
    for backward in ways:
        x = images.clone().requires_grad_()
        try:
            purified = purifier.purified(x, Noise.of(0, torch.arange(len(x))), backward)
            torch.autograd.grad(purified.sum(), x)
        except Exception:  # `purify` may use anything that autograd refuses
            continue
        yield Route(purifier, backward)


def _round_to_8_bit(x_adv: Tensor, x: Tensor) -> Tensor:
    low, high = (x_adv * 255 + 1e-3).floor() / 255, (x_adv * 255 - 1e-3).ceil() / 255
    return torch.where(x_adv > x, low, high).clamp(0, 1)


def _neighbours(problem: Problem, x_adv: Tensor) -> Iterator[Tensor]:
    for k in range(NEIGHBOURS):
        signs = torch.randn(x_adv.shape, generator=torch.Generator().manual_seed(k)).sign()
        yield project(x_adv + TINY * signs, problem.x, problem.eps, "Linf")


def _run_pgd(problem: Problem, route: Route, loss: Any, seed: int) -> Tensor:
    """Return the last iterate of PGD with a step that shrinks from eps / 2 to eps / 32.

    No image is dropped, because the images are meant for another pipeline.
    """
    x, y, eps, steps = problem.x, problem.y, problem.eps, problem.steps
    noise = Noise.of(seed, torch.arange(len(x)))
    target = Target(
        problem.network, route.purifier, noise.fork("truth"), route.backward, eot=route.eot
    )
    x_adv = random_start(x, eps, "Linf", noise)
    for k in range(steps):
        gradient = target.gradient(x_adv, y, loss)[0].nan_to_num()
        step = eps * 0.5 ** (1 + 4 * k / steps)
        x_adv = project(x_adv + step * gradient.sign(), x, eps, "Linf")
    return x_adv


def _classify_draws(problem: Problem, x: Tensor, draws: int, seed: int) -> np.ndarray:
    """Return 1 where an image is correct in a draw, else 0: (n, draws).

    All draws are made, whatever the card says: a purifier may draw or remember nevertheless.
    """
    noise = Noise.of(seed, torch.arange(len(x))).fork("right")
    columns = []
    with torch.no_grad():
        for draw in range(draws):
            purified = problem.purifier.purified(x.clone(), noise.fork(str(draw)))
            columns.append(problem.network(purified).argmax(1) == problem.y)
    return torch.stack(columns, 1).to(torch.uint8).numpy()
