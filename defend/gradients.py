"""Gradients past, around or through a relaxation of a step that has none.

Past it: BPDA, Athalye et al., arXiv:1802.00420, section 4.1. A relaxation is a smooth function that
tends to the step when its temperature tends to zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from defend.errors import BadParameter


@dataclass(frozen=True)
class Relaxed:
    """The gradient through the relaxation that a purifier declares, at one temperature.

    The unit of the temperature is the purifier's own, chosen so that 1 is smooth and 0.1 is steep.
    """

    temperature: float

    def __post_init__(self) -> None:
        if not (0 < self.temperature < math.inf):
            raise BadParameter(
                f"relaxed gradient: expected temperature > 0, got {self.temperature!r};"
                " write relaxed:temperature=0.3"
            )


@dataclass(frozen=True)
class PlainAutograd:
    """The gradient that autograd gives through `purify` itself, whatever the card declares.

    It holds for the members of a chain too, and for purifiers that a purifier calls.
    past_replacements: differentiate the values that `straight_through` and `relax` return, where
    they can be differentiated, and not what stands for their gradient.
    """

    past_replacements: bool = False


# The ways in which autograd can go through `purify`, for whoever trusts no declared gradient.
AUTOGRAD_ROUTES = (PlainAutograd(), PlainAutograd(past_replacements=True))

# A differentiable stand-in for a purifier, the relaxation that the purifier declares itself, or
# plain autograd through it.
Backward = Callable[[Tensor], Tensor] | Relaxed | PlainAutograd

_shows_relaxation = ContextVar("shows_relaxation", default=False)
_plain_autograd = ContextVar[PlainAutograd | None]("plain_autograd", default=None)


class _StraightThrough(torch.autograd.Function):
    """Return `value` in the forward pass; send the gradient to `carrier` in the backward pass.

    x + (value - x).detach() has the same gradient, but rounds: it missed `value` by up to 3e-8 on a
    fifth of float32 entries when measured.
    """

    @staticmethod
    def forward(ctx: Any, carrier: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def straight_through(carrier: Tensor, value: Tensor) -> Tensor:
    """Return `value` with the gradient of `carrier`, for one step of a purifier:
    straight_through(z, z.round()).
    """
    if value.requires_grad and _skips_replacements():
        return value
    output: Tensor = _StraightThrough.apply(carrier, value)  # type: ignore[no-untyped-call]
    return output


def identity(x: Tensor) -> Tensor:
    """Return x: the stand-in that sends a gradient straight past a purifier."""
    return x


@contextmanager
def differentiated_by(backward: Backward | None) -> Iterator[None]:
    """Let purifiers that are called within be differentiated by plain autograd if `backward` is."""
    if not isinstance(backward, PlainAutograd):
        yield
        return
    token = _plain_autograd.set(backward)
    try:
        yield
    finally:
        _plain_autograd.reset(token)


def inherited(backward: Backward | None) -> Backward | None:
    """Return what differentiates a purifier: plain autograd where its caller is differentiated so.

    A gradient that the caller names stays, unless replacements are passed.
    """
    plain = _plain_autograd.get()
    if plain is None or (backward is not None and not plain.past_replacements):
        return backward
    return plain


def _skips_replacements() -> bool:
    plain = _plain_autograd.get()
    return plain is not None and plain.past_replacements


# The gradients that are the same for every purifier, by their names on the command line.
FIXED_GRADIENTS: dict[str, Backward] = {"identity": identity, "autograd": PlainAutograd()}


def relax(soft: Tensor, value: Tensor) -> Tensor:
    """Return `value` with the gradient of its relaxation `soft`, for a step of
    `Purifier.relaxed`: relax(soft_round(z, temperature), z.round()).

    Within `relaxations_shown` it returns `soft`, so that the conformance kit can measure how near
    the relaxation is to the step.
    """
    return soft if _shows_relaxation.get() else straight_through(soft, value)


@contextmanager
def relaxations_shown() -> Iterator[None]:
    """Let `relax` return its relaxation instead of the value, for checks of a relaxation."""
    token = _shows_relaxation.set(True)
    try:
        yield
    finally:
        _shows_relaxation.reset(token)


def soft_round(z: Tensor, temperature: float) -> Tensor:
    """Return a smooth staircase of z that tends to z.round() when the temperature tends to 0.

    floor(z) + 1/2 + tanh(r / T) / (2 tanh(1 / (2 T))), with r = z - floor(z) - 1/2 and T the
    temperature, in steps of the staircase: Agustsson and Theis, arXiv:2006.09952, section 4.1,
    where T is 1 / alpha. At T = 1 the slope lies between 0.85 and 1.08, at 0.3 between 0.24 and
    1.8, at 0.1 between 0.0009 and 5.
    """
    step = z.detach().floor()
    height = 2 * math.tanh(0.5 / temperature)
    return step + 0.5 + torch.tanh((z - step - 0.5) / temperature) / height
