"""Steps that are computed again in the backward pass, so that a long sampler fits into memory.

Gradient checkpointing: Chen, Xu, Zhang, Guestrin, arXiv:1604.06174.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from defend.gradients import differentiated_by, inherited
from defend.noise import Noise

Step = Callable[[Tensor, Noise], Tensor]


def recomputed(step: Step, x: Tensor, noise: Noise) -> Tensor:
    """Return step(x, noise), which keeps no activations: the backward pass computes it again.

    `torch.utils.checkpoint` alone would draw other numbers the second time, because a Noise counts
    its draws: the output stays right and the gradient becomes wrong. Here both evaluations draw the
    same numbers, and `noise` goes on behind them, as after a plain call. All randomness of the step
    comes from the noise that it is given.
    """
    if not torch.is_grad_enabled():
        return step(x, noise)
    start, gradient = noise.from_here(), inherited(None)

    def evaluate(x: Tensor) -> Tensor:
        drawn = start.again()
        with differentiated_by(gradient):  # the backward pass comes after the caller has ended
            y = step(x, drawn)
        noise.skip_to(drawn)
        return y

    output: Tensor = checkpoint(evaluate, x, use_reentrant=False, preserve_rng_state=False)
    return output
