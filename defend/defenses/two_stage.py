"""Two-stage restoration: super-resolution, then colorization, by one diffusion prior.

Lim, Hong, Lee, "Two-Stage Image Restoration: A Shield against Adversarial Attacks on Face
Identification" (no identifier), by DDNM: Wang, Yu, Zhang, arXiv:2212.00490, equations 13 to 19.

    x_T ~ N(0, 1);  for each timestep t and its successor t', abar = abar_t, abar' = abar_t':
    x_0  = (x_t - sqrt(1 - abar) e(x_t, t)) / sqrt(abar)
    x_0' = x_0 - Ap (A x_0 - y)
    x_t' = sqrt(abar') x_0' + sqrt(1 - abar') (eta z + sqrt(1 - eta^2) e),    z ~ N(0, 1)

sampler=diffpir has the noise that belongs to x_0' in place of e: e' = (x_t - sqrt(abar) x_0') /
sqrt(1 - abar), from Zhu et al. (DiffPIR), arXiv:2305.08995, algorithm 1.
sampler=interpolation asks no network: it is the baseline that a prior has to beat.
docs/diffusion.md says what is ambiguous in both papers, and what is done here.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from defend.defenses.diffusion import (
    CLEAN,
    TIMESTEPS,
    add_noise,
    alpha_bar,
    find_noise,
    spaced_timesteps,
    to_model_range,
    to_pixels,
    walk,
)
from defend.defenses.diffusion_purifier import DiffusionPurifier
from defend.defenses.restoration import ChannelMean, Means, Pooling, keep_means, noisy_weights
from defend.defenses.sizes import resize, resize_unclipped
from defend.noise import Noise
from defend.purifier import Card
from defend.recomputation import recomputed

LAST = TIMESTEPS - 1


class TwoStage(DiffusionPurifier):
    """Keep the means of scale x scale pixels, then the mean of the channels, and draw the rest.

    With ``sigma_y=0``, A(output) = A(input) at the size of the input, so that the perturbation
    within these means survives. With ``sigma_y > 0`` (DDNM+) the means may move. Images of another
    size than the prior's have squares of the same share of the image in both. A prior of grey
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
    scale: int = 2  # side of a square whose mean is kept: pixels of the smaller of both sizes
    stages: Literal["sr", "color", "both"] = "both"
    steps: int = 100  # of each stage, if it begins at timestep 999: calls of the network
    spacing: Literal["auto", "leading", "trailing"] = "auto"  # see docs/diffusion.md
    eta: float = 0.85  # the share of fresh noise
    sigma_y: float = 0.0  # of noise in the means of the input, in pixels of [0, 1]
    sampler: Literal["ddnm", "diffpir", "interpolation"] = "ddnm"
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
        divides = TIMESTEPS % self.steps == 0 or self.spacing != "leading"
        self.require(
            divides, "spacing", f"auto or trailing, as steps={self.steps} do not divide 1000"
        )
        self.require(self.travel_repeat >= 1, "travel_repeat", ">= 1")
        first = self._timesteps()[-1]
        self.require(first <= self.color_start <= LAST, "color_start", f"{first} to 999")
        self._validate_travel()
        self.require(self.channels == 3 or self.stages != "color", "stages", "sr on grey images")
        self._validate_baseline()
        if self.channels == 1 and self.stages == "both":
            warnings.warn("two-stage: grey images have no colour; stages=sr alone", stacklevel=2)
            self.stages = "sr"

    def _validate_baseline(self) -> None:
        """Call the baseline deterministic. Raise BadParameter if it is to move the means."""
        is_baseline = self.sampler == "interpolation"
        self.require(not (is_baseline and self.sigma_y), "sigma_y", "0 with sampler=interpolation")
        self.card = replace(self.card, stochastic=not is_baseline)  # type: ignore[misc]

    def _validate_travel(self) -> None:
        """Raise BadParameter if no journey fits into one of the stages.

        The last step, to the clean image, is in no journey.
        """
        self.require(1 <= self.travel_length <= self.steps, "travel_length", "1 to steps")
        start = LAST if self.stages == "sr" else self.color_start
        longest = len(self._timesteps_from(start)) - 1
        fits = self.travel_repeat == 1 or self.travel_length <= longest
        wanted = f"1 to {longest}, as the shorter stage has {longest + 1} steps"
        self.require(fits, "travel_length", wanted if longest else "2 or more steps in each stage")

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        """Return the restored x (b, c, h, w)."""
        if self.stages != "color":
            x = self._restore(x, *self._poolings(x), LAST, noise.fork("sr"))
        if self.stages != "sr":
            means = ChannelMean()
            x = self._restore(x, means, means, self.color_start, noise.fork("color"))
        return x

    def _poolings(self, x: Tensor) -> tuple[Pooling, Pooling]:
        """Return A of stage 1 at the size of the prior, and at the size of x."""
        ratio = self.size / math.sqrt(x.shape[2] * x.shape[3])
        inner, outer = (max(self.scale, round(self.scale * r)) for r in (ratio, 1 / ratio))
        return Pooling(inner), Pooling(outer)

    def _restore(self, x: Tensor, means: Means, outer: Means, start: int, noise: Noise) -> Tensor:
        """Return one stage of x (b, c, h, w) in [0, 1].

        means: A at the size of the prior. outer: A at the size of x.
        """
        b, c, h, w = x.shape
        known = means.reduce(to_model_range(resize(x, self.size, self.size)))
        like = x.new_empty(b, c, self.size, self.size)
        if self.sampler == "interpolation":
            x_0 = self._interpolate(known, means, like)
        else:
            x_0 = self._sample(known, means, start, like, noise)
        restored = resize(to_pixels(x_0).clamp(0, 1), h, w)
        target = outer.reduce(x)
        if self.sigma_y:
            departure = means.spread(means.reduce(x_0) - known, x_0) / 2  # in pixels
            target = (target + outer.reduce(resize_unclipped(departure, h, w))).clamp(0, 1)
        return keep_means(restored, target, outer)

    def _sample(
        self, known: Tensor, means: Means, start: int, like: Tensor, noise: Noise
    ) -> Tensor:
        """Return what the prior draws for the means `known`, in [-1, 1], in the shape of `like`."""
        timesteps = self._timesteps_from(start)
        x_t = noise.normal(like)
        if start < LAST:
            x_t = add_noise(self._guess(known, means, like), x_t, timesteps[0])
        for t, following in walk(timesteps, self.travel_length, self.travel_repeat):
            x_t = recomputed(partial(self._step, known, means, t, following), x_t, noise)
        return x_t

    def _interpolate(self, known: Tensor, means: Means, like: Tensor) -> Tensor:
        """Return the bicubic interpolation of pooled means, or grey with the mean chroma."""
        if isinstance(means, Pooling):
            return means.interpolate(known, like).clamp(-1, 1)
        return self._guess(known, means, like)

    def _guess(self, known: Tensor, means: Means, like: Tensor) -> Tensor:
        """Return Ap y plus the mean colour of the training images without its brightness."""
        mean: Tensor = 2 * self.net.mean.to(like.dtype).view(1, -1, 1, 1)  # type: ignore
        return (means.spread(known, like) + mean - mean.mean()).clamp(-1, 1)

    def _timesteps(self) -> list[int]:
        """Return the timesteps at which the network is asked, in falling order."""
        return spaced_timesteps(self.steps, self.spacing)

    def _timesteps_from(self, start: int) -> list[int]:
        """Return the timesteps of a stage that begins at `start`."""
        return [t for t in self._timesteps() if t <= start]

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
            e = find_noise(x_t, image, t)
            correction = torch.zeros_like(image)
        added = sigma * (self.eta * z + math.sqrt(1 - self.eta**2) * e)
        if self.sampler == "ddnm" and following == CLEAN:
            correction = self._trust(means, t) * correction
        elif self.sampler == "ddnm" and self.sigma_y:
            arriving = signal * 2 * self.sigma_y * means.inverse_singular_value
            trust, fresh = noisy_weights(arriving, sigma, self.eta)
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
