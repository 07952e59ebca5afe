"""A check of purifiers whose backward pass computes steps again. It takes one purifier."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from torch import Tensor

from defend.noise import Noise
from defend.purifier import Purifier
from defend.testing.defense_setup import BATCH, purify
from defend.testing.runner import reads_only

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
