"""Two-stage restoration: super-resolution, then colorization, by one diffusion prior.

Lim, Hong, Lee, "Two-Stage Image Restoration: A Shield against Adversarial Attacks on Face
Identification" (no identifier), by DDNM: Wang, Yu, Zhang, arXiv:2212.00490, equations 13 to 19.

    x_T ~ N(0, 1);  for each timestep t and its successor t', abar = abar_t, abar' = abar_t':
    x_0  = (x_t - sqrt(1 - abar) e(x_t, t)) / sqrt(abar)
    x_0' = x_0 - Ap (A x_0 - y)
    x_t' = sqrt(abar') x_0' + sqrt(1 - abar') (eta z + sqrt(1 - eta^2) e),    z ~ N(0, 1)

sampler=diffpir has the noise that belongs to x_0' in place of e: e' = (x_t - sqrt(abar) x_0') /
sqrt(1 - abar), from Zhu et al. (DiffPIR), arXiv:2305.08995, algorithm 1.
docs/diffusion.md says what is ambiguous in both papers, and what is done here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from defend.defenses.diffusion import (
    CLEAN,
    TIMESTEPS,
    add_noise,
    alpha_bar,
    leading_timesteps,
    resize,
    to_model_range,
    to_pixels,
    trailing_timesteps,
)
from defend.defenses.diffusion_purifier import DiffusionPurifier
from defend.defenses.restoration import ChannelMean, Means, Pooling, keep_means
from defend.noise import Noise
from defend.purifier import Card
from defend.recomputation import recomputed

LAST = TIMESTEPS - 1


class TwoStage(DiffusionPurifier):
    """Keep the means of scale x scale pixels, then the mean of the channels, and draw the rest.

    With ``sigma_y=0``, A(output) = A(input) at the size of the input, so that the perturbation
    within these means survives. With ``sigma_y > 0`` (DDNM+) the means may move. A prior of grey
    images has no second stage: stages=both is stages=sr then, with a warning.
    """

    card = Card(
        paper="none: a conference paper without identifier, see docs/diffusion.md;"
        " arXiv:2212.00490",
        gradient="exact",
        stochastic=True,
        channels=(1, 3),
    )
    uses = frozenset(
        {
            "scale",
            "stages",
            "steps",
            "spacing",
            "eta",
            "sigma_y",
            "sampler",
            "travel_length",
            "travel_repeat",
            "color_start",
        }
    )
    scale: int = 2  # pixels along the side of a square whose mean is kept
    stages: Literal["sr", "color", "both"] = "both"
    steps: int = 100  # of each stage, if it begins at timestep 999: calls of the network
    spacing: Literal["auto", "leading", "trailing"] = "auto"  # auto: trailing below 100 steps
    eta: float = 0.85  # the share of fresh noise
    sigma_y: float = 0.0  # of noise in the means of the input, in pixels of [0, 1]
    sampler: Literal["ddnm", "diffpir"] = "ddnm"
    travel_length: int = 1  # timesteps of one journey back
    travel_repeat: int = 1  # times that each part is computed; 1: no journey
    color_start: int = LAST  # the timestep from which stage 2 begins with the mean colour

    def validate(self) -> None:
        """Raise BadParameter if a field is outside its range."""
        super().validate()
        self.require(self.scale >= 1, "scale", ">= 1")
        self.require(1 <= self.steps <= TIMESTEPS, "steps", "1 to 1000")
        self.require(0 <= self.eta <= 1, "eta", "0 to 1")
        self.require(self.sigma_y >= 0, "sigma_y", ">= 0")
        self.require(1 <= self.travel_length <= self.steps, "travel_length", "1 to steps")
        self.require(self.travel_repeat >= 1, "travel_repeat", ">= 1")
        first = self._timesteps()[-1]
        self.require(first <= self.color_start <= LAST, "color_start", f"{first} to 999")
        self.require(self.channels == 3 or self.stages != "color", "stages", "sr on grey images")
        if self.channels == 1 and self.stages == "both":
            warnings.warn("two-stage: grey images have no colour; stages=sr alone", stacklevel=2)
            self.stages = "sr"

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        """Return the restored x (b, c, h, w)."""
        if self.stages != "color":
            x = self._restore(x, Pooling(self.scale), LAST, noise.fork("sr"))
        if self.stages != "sr":
            x = self._restore(x, ChannelMean(), self.color_start, noise.fork("color"))
        return x

    def _restore(self, x: Tensor, means: Means, start: int, noise: Noise) -> Tensor:
        """Return one stage of x (b, c, h, w) in [0, 1]."""
        b, c, h, w = x.shape
        known = means.reduce(to_model_range(resize(x, self.size, self.size)))
        like = x.new_empty(b, c, self.size, self.size)
        timesteps = [t for t in self._timesteps() if t <= start]
        x_t = noise.normal(like)
        if start < LAST:
            x_t = add_noise(self._guess(known, means, like), x_t, timesteps[0])
        for t, following in self._walk(timesteps):
            x_t = recomputed(partial(self._step, known, means, t, following), x_t, noise)
        restored = resize(to_pixels(x_t).clamp(0, 1), h, w)
        return restored if self.sigma_y else keep_means(restored, means.reduce(x), means)

    def _guess(self, known: Tensor, means: Means, like: Tensor) -> Tensor:
        """Return Ap y plus the mean colour of the training images without its brightness."""
        mean: Tensor = 2 * self.net.mean.to(like.dtype).view(1, -1, 1, 1)  # type: ignore
        return (means.spread(known, like) + mean - mean.mean()).clamp(-1, 1)

    def _timesteps(self) -> list[int]:
        """Return the timesteps at which the network is asked, in falling order."""
        few = self.steps < 100 if self.spacing == "auto" else self.spacing == "trailing"
        return trailing_timesteps(self.steps) if few else leading_timesteps(self.steps)

    def _walk(self, timesteps: list[int]) -> Iterator[tuple[int, int]]:
        """Yield each timestep with its successor; journeys back go from a lower to a higher one.

        The journeys are those of Lugmayr et al. (RePaint), arXiv:2201.09865, appendix B: after each
        ``travel_length`` steps, but not at the end, as many again.
        """
        levels = [*timesteps, CLEAN]
        length = self.travel_length
        for k, (t, following) in enumerate(pairwise(levels), 1):
            yield t, following
            if following == CLEAN or (len(timesteps) - 1 - k) % length or k < length:
                continue
            for _ in range(self.travel_repeat - 1):
                part = levels[k - length : k + 1]
                yield part[-1], part[0]
                yield from pairwise(part)

    def _step(
        self, y: Tensor, means: Means, t: int, following: int, x_t: Tensor, noise: Noise
    ) -> Tensor:
        """Return x at the timestep that follows, in [-1, 1] and noise."""
        z = noise.normal(x_t)
        if following > t:
            share = alpha_bar(following) / alpha_bar(t)
            return math.sqrt(share) * x_t + math.sqrt(1 - share) * z
        image, e = self.predict(x_t, t)
        correction = means.spread(means.reduce(image) - y, image)
        sigma, signal = math.sqrt(1 - alpha_bar(following)), math.sqrt(alpha_bar(following))
        if self.sampler == "diffpir":
            image = image - self._trust(means, t) * correction
            e = (x_t - math.sqrt(alpha_bar(t)) * image) / math.sqrt(1 - alpha_bar(t))
            correction = torch.zeros_like(image)
        added = sigma * (self.eta * z + math.sqrt(1 - self.eta**2) * e)
        if self.sampler == "ddnm" and self.sigma_y:
            trust, fresh = self._noisy_weights(means, sigma, signal)
            added = added + means.project(fresh * z - added)
            correction = trust * correction
        return signal * (image - correction) + added

    def _trust(self, means: Means, t: int) -> float:
        """Return the weight of y beside what the network predicts (DiffPIR, equation 13).

        The errors of the two have the variances of the noise in y and of that in x_t.
        """
        noise_of_means = (2 * self.sigma_y * means.inverse_singular_value) ** 2
        noise_of_image = 1 / alpha_bar(t) - 1
        return noise_of_image / (noise_of_image + noise_of_means)

    def _noisy_weights(self, means: Means, sigma: float, signal: float) -> tuple[float, float]:
        """Return the trust in y, and the fresh noise in its range (DDNM+, equations 17 to 19).

        The noise of y, as it arrives in x_t', and the fresh noise have together the variance
        sigma^2 = 1 - abar'; y is trusted fully where its own noise is not more than that.
        """
        arriving = signal * 2 * self.sigma_y * means.inverse_singular_value
        if arriving <= sigma:
            return 1.0, math.sqrt(sigma**2 - arriving**2)
        return sigma * math.sqrt(1 - self.eta**2) / arriving, self.eta * sigma
