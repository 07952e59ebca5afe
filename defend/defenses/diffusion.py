"""The noise of a DDPM, its timesteps, and the way between images and the range of a prior.

Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", arXiv:2006.11239. For images x_0 in
[-1, 1],

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) e,    e ~ N(0, 1),    t = 0 ... 999,

where abar_t is the product of 1 - beta_s over s <= t, and beta grows linearly from 1e-4 to .02
(section 4 there). Timestep -1 stands for the clean image: its abar is 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate, pairwise
from operator import mul

import torch
from torch import Tensor

TIMESTEPS = 1000
FIRST_BETA, LAST_BETA = 1e-4, 0.02
CLEAN = -1  # the timestep of an image without noise

_BETAS = [FIRST_BETA + (LAST_BETA - FIRST_BETA) * t / (TIMESTEPS - 1) for t in range(TIMESTEPS)]
_ALPHA_BARS: list[float] = [
    *accumulate((1 - beta for beta in _BETAS), mul),
    1.0,
]  # the last one is CLEAN


def alpha_bar(t: int) -> float:
    """Return abar_t, the share of the image in the variance at timestep t of -1 ... 999."""
    return _ALPHA_BARS[t]


def alpha_bars(t: Tensor) -> Tensor:
    """Return abar_t of timesteps t (b,) in 0 ... 999: float32 (b, 1, 1, 1)."""
    values = torch.tensor(_ALPHA_BARS, dtype=torch.float32, device=t.device)
    return values[t].view(-1, 1, 1, 1)


def add_noise(x: Tensor, e: Tensor, t: int) -> Tensor:
    """Return x_t of images x in [-1, 1] and standard normal noise e of the same shape."""
    abar = alpha_bar(t)
    return math.sqrt(abar) * x + math.sqrt(1 - abar) * e


def predict_image(x_t: Tensor, e: Tensor, t: int) -> Tensor:
    """Return the image x_0 that belongs to x_t and the noise e, clipped to [-1, 1]."""
    abar = alpha_bar(t)
    return ((x_t - math.sqrt(1 - abar) * e) / math.sqrt(abar)).clamp(-1, 1)


def find_noise(x_t: Tensor, image: Tensor, t: int) -> Tensor:
    """Return the noise e that belongs to x_t and the image x_0 in [-1, 1].

    Where `predict_image` clipped x_0, e is no longer the noise that the network predicted.
    """
    abar = alpha_bar(t)
    return (x_t - math.sqrt(abar) * image) / math.sqrt(1 - abar)


def reverse_step(
    x_t: Tensor, image: Tensor, t: int, following: int, eta: float, z: Tensor | float
) -> Tensor:
    """Return x at the timestep that follows t, given x_t and the image x_0 in [-1, 1].

    Song, Meng, Ermon, arXiv:2010.02502, equation 12, where e is the noise that belongs to x_0. With
    eta = 1 it draws from q(x_t' | x_t, x_0), equation 7 of arXiv:2006.11239. z: standard normal
    noise, or 0 for eta = 0.
    """
    abar, next_abar = alpha_bar(t), alpha_bar(following)
    sigma = eta * math.sqrt((1 - next_abar) / (1 - abar) * (1 - abar / next_abar))
    e = find_noise(x_t, image, t)
    added = math.sqrt(max(0.0, 1 - next_abar - sigma**2)) * e + sigma * z
    return math.sqrt(next_abar) * image + added


def leading_timesteps(steps: int) -> list[int]:
    """Return timesteps in falling order down to 0: 990, 980 ... 0 for 100 steps, as DDNM's."""
    stride = TIMESTEPS // steps
    return [stride * k for k in reversed(range(steps))]


def trailing_timesteps(steps: int, noised: int = TIMESTEPS) -> list[int]:
    """Return timesteps in falling order from the last of `noised`: 999, 949 ... 49 for 20 steps.

    Lin, Liu, Li, Yang, arXiv:2305.08891, section 3.3: with few steps, sampling has to begin where
    the image is nearly noise.
    """
    return [round(noised * k / steps) - 1 for k in range(steps, 0, -1)]


def spaced_timesteps(steps: int, spacing: str) -> list[int]:
    """Return the timesteps of a spacing: "leading", "trailing" or "auto".

    "auto" is leading from 100 steps on if they divide 1,000, since others begin far from noise.
    """
    is_leading = spacing == "leading"
    if spacing == "auto":
        is_leading = steps >= 100 and TIMESTEPS % steps == 0
    return leading_timesteps(steps) if is_leading else trailing_timesteps(steps)


def walk(timesteps: list[int], length: int, repeat: int) -> Iterator[tuple[int, int]]:
    """Yield each timestep with its successor; journeys back go from a lower to a higher one.

    The journeys are those of Lugmayr et al. (RePaint), arXiv:2201.09865, appendix B: after each
    `length` steps, but not at the end, as many again, until each part is computed `repeat` times.
    """
    levels = [*timesteps, CLEAN]
    for k, (t, following) in enumerate(pairwise(levels), 1):
        yield t, following
        if following == CLEAN or (len(timesteps) - 1 - k) % length or k < length:
            continue
        for _ in range(repeat - 1):
            part = levels[k - length : k + 1]
            yield part[-1], part[0]
            yield from pairwise(part)


def to_model_range(x: Tensor) -> Tensor:
    """Map pixels in [0, 1] to [-1, 1]."""
    return 2 * x - 1


def to_pixels(x: Tensor) -> Tensor:
    """Map [-1, 1] to pixels in [0, 1], unclipped."""
    return (x + 1) / 2
