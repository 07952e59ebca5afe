"""The one way to attack a pipeline: run an attack, and check what it returns."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from defend.attack import Attack
from defend.errors import BrokenAttack
from defend.noise import Noise
from defend.norms import check_adversarial
from defend.target import Target


@dataclass(frozen=True, kw_only=True)
class AttackResult:
    """What an attack made at one eps."""

    eps: float
    x_adv: Tensor
    forwards: int
    backwards: int
    seconds: float
    notes: dict[str, Tensor]  # what the attack says of each image: (b, ...)


@dataclass(frozen=True, kw_only=True)
class AttackFailure:
    """Why an attack made nothing at one eps."""

    eps: float
    error: Exception


def attack_images(
    attack: Attack, name: str, target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise
) -> Tensor:
    """Return checked adversarial images of one attack at one eps.

    Raises BrokenAttack where they leave the ball, the box or the finite numbers.
    """
    x_adv = attack.run(target, x.clone(), y.clone(), eps, noise)
    check_adversarial(x_adv, x, eps, attack.norm, name)
    return x_adv.detach()


def sweep_eps(
    attack: Attack,
    name: str,
    target: Target,
    x: Tensor,
    y: Tensor,
    epsilons: Sequence[float],
    noise: Noise,
) -> Iterator[AttackResult | AttackFailure]:
    """Yield a result for each eps; the attack may share work between them.

    An eps at which the attack fails leaves the others alone: the sweep begins again behind it.
    """
    remaining = list(epsilons)
    while remaining:
        try:
            for result in _sweep(attack, name, target, x, y, list(remaining), noise):
                remaining.pop(0)
                yield result
            error: Exception = BrokenAttack(
                f"{name}: expected images for {len(epsilons)} eps, got fewer"
            )
        except Exception as e:  # an attack may raise anything; the run goes on
            error = e
        if remaining:
            yield AttackFailure(eps=remaining.pop(0), error=error)


def _sweep(
    attack: Attack,
    name: str,
    target: Target,
    x: Tensor,
    y: Tensor,
    epsilons: Sequence[float],
    noise: Noise,
) -> Iterator[AttackResult]:
    earlier = {eps: _earlier_seconds(target, eps) for eps in epsilons}
    start = time.perf_counter()
    sweep = attack.sweep(target, x.clone(), y.clone(), list(epsilons), noise)
    for eps, x_adv in zip(epsilons, sweep, strict=False):
        check_adversarial(x_adv, x, eps, attack.norm, name)
        yield AttackResult(
            eps=eps,
            x_adv=x_adv.detach().clone(),  # an attack may go on with the same memory
            forwards=target.counts["forwards"],
            backwards=target.counts["backwards"],
            seconds=earlier[eps] + time.perf_counter() - start,
            notes=_notes(target, len(x), name),
        )
        start = time.perf_counter()


def _earlier_seconds(target: Target, eps: float) -> float:
    """Return how long an attack took before it was interrupted."""
    return target.state_file(eps).earlier_seconds if target.state_file else 0.0


def _notes(target: Target, images: int, name: str) -> dict[str, Tensor]:
    """Return the attack's notes. Raises BrokenAttack for a note that is not of each image."""
    for note, values in target.notes.items():
        if len(values) != images:
            raise BrokenAttack(
                f"{name}: expected one row for each of {images} images in its note {note!r}, got"
                f" shape {tuple(values.shape)}"
            )
    return {note: values.cpu() for note, values in target.notes.items()}
