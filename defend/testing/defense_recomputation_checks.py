"""Checks of purifiers whose backward pass computes steps again. Each check takes one purifier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
import torch.utils.checkpoint
from torch import Tensor

from defend.noise import Noise
from defend.purifier import Backward, Purifier, Relaxed
from defend.testing.defense_setup import BATCH, purify, random_like
from defend.testing.runner import reads_only

ROUNDING = 1e-3  # of a gradient's norm: what another order of additions may change
Draw = tuple[int, int]  # the key of an image's stream, and the number of the call


@contextmanager
def recorded_draws() -> Iterator[set[Draw]]:
    """Yield a set that grows by each draw from any Noise."""
    draws: set[Draw] = set()
    original = Noise._bits

    def bits(noise: Noise, n: int) -> Tensor:
        values = original(noise, n)
        draws.update((key, noise._calls) for key in noise._key.tolist())
        return values

    with patch.object(Noise, "_bits", bits):
        yield draws


@reads_only
def check_recomputed_steps_draw_the_same_noise(p: Purifier) -> None:
    """Fail if the backward pass draws numbers that the forward pass has not drawn.

    A step that is computed again for its gradient must see the same noise. Otherwise the output is
    right, and the gradient is that of another function.
    """
    with recorded_draws() as forward_draws:
        output = purify(p, p.example(BATCH).requires_grad_())
    if not output.requires_grad:
        return
    with recorded_draws() as backward_draws:
        output.sum().backward()
    new_count = len(backward_draws - forward_draws)
    assert new_count == 0, (
        f"the backward pass makes {new_count} draws of noise that the forward pass has not made, "
        "so that the gradient belongs to another output; in place of torch.utils.checkpoint call "
        "defend.recomputed(step, x, noise)"
    )


class _CalledDirectly:
    """In place of torch's CheckpointFunction: it keeps all activations."""

    @staticmethod
    def apply(function: Callable[..., object], preserve: bool, *args: object) -> object:
        return function(*args)


def _keeps_activations(*_: object, **options: object) -> Iterator[None]:  # noqa: ARG001
    """In place of what torch's checkpoint does around the function that it calls: nothing."""
    yield


@contextmanager
def nothing_recomputed() -> Iterator[None]:
    """Let `torch.utils.checkpoint.checkpoint`, on which `recomputed` rests, call functions once.

    What that function calls is replaced, not the function itself, which other modules import.
    """
    with (
        patch.object(torch.utils.checkpoint, "CheckpointFunction", _CalledDirectly),
        patch.object(
            torch.utils.checkpoint, "_checkpoint_without_reentrant_generator", _keeps_activations
        ),
    ):
        yield


@reads_only
def check_recomputed_steps_are_the_same_steps(p: Purifier) -> None:
    """Fail if the gradient is another one when nothing is computed again for it.

    A step that reads a variable of the loop around it, or a state, is another step by the time of
    the backward pass. Then the output is right, and the gradient is that of another function.
    """
    for backward in (None, Relaxed(0.3)) if p.has_relaxation else (None,):
        recomputed = _gradient_of_projection(p, backward)
        with nothing_recomputed():
            direct = _gradient_of_projection(p, backward)
        difference = (recomputed - direct).nan_to_num().flatten(1).norm(dim=1)
        allowed = ROUNDING * direct.nan_to_num().flatten(1).norm(dim=1) + 1e-6
        changed_count = int((difference > allowed).sum())
        assert changed_count == 0, (
            f"{changed_count} of {BATCH} images have another gradient when no step is computed "
            "again in the backward pass: a step changes in between; bind the variables of a loop "
            "when the step is made, as by functools.partial(step, k)"
        )


def _gradient_of_projection(p: Purifier, backward: Backward | None) -> Tensor:
    """Return the gradient of a projection of the output images; 0 where there is none."""
    x = p.example(BATCH).requires_grad_()
    y = purify(p, x, backward=backward)
    if not y.requires_grad:
        return torch.zeros_like(x)
    (y * random_like(y, 1)).sum().backward()  # autograd.grad refuses reentrant checkpoints
    return torch.zeros_like(x) if x.grad is None else x.grad
