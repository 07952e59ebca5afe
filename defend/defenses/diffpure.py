"""DiffPure: add noise up to a timestep, and let a diffusion prior take it away again.

Nie, Guo, Huang, Xiao, Vahdat, Anandkumar, "Diffusion Models for Adversarial Purification",
arXiv:2205.07460, section 3.1:

    x_t  = sqrt(abar_t) x + sqrt(1 - abar_t) e,    e ~ N(0, 1)
    x_t' = sqrt(abar') x_0 + sqrt(1 - abar' - sigma^2) e + sigma z,    z ~ N(0, 1)
    sigma = eta sqrt((1 - abar') / (1 - abar)) sqrt(1 - abar / abar')

The second line is equation 12 of Song, Meng, Ermon, arXiv:2010.02502, for a step from t to t': with
eta = 1 it is ancestral sampling, with eta = 0 DDIM. The paper solves the reverse VP-SDE, of which
ancestral sampling with a step for each timestep is a discretisation. Symbols: t* of the paper is
``t`` / 1000, x_0 is the image that the network predicts, clipped to [-1, 1], and
e = (x_t - sqrt(abar) x_0) / sqrt(1 - abar) is the noise that belongs to it.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

from torch import Tensor

from defend.defenses.diffusion import (
    CLEAN,
    TIMESTEPS,
    add_noise,
    reverse_step,
    to_model_range,
    to_pixels,
    trailing_timesteps,
)
from defend.defenses.diffusion_purifier import DiffusionPurifier
from defend.defenses.sizes import resize
from defend.noise import Noise
from defend.purifier import Card
from defend.recomputation import recomputed


class DiffPure(DiffusionPurifier):
    """Noise x for ``t`` of 1,000 timesteps, and denoise it in ``steps`` calls of the network."""

    card = Card(paper="arXiv:2205.07460", gradient="exact", stochastic=True, channels=(1, 3))
    uses = frozenset({"t", "steps", "eta"})
    t: int = 100  # the paper: 100 on CIFAR-10, 150 on ImageNet, 500 on faces
    steps: int = 100  # calls of the network, at most t
    eta: float = 1.0  # 1: ancestral; 0: DDIM

    def validate(self) -> None:
        """Raise BadParameter if a field is outside its range."""
        super().validate()
        self.require(1 <= self.t <= TIMESTEPS, "t", "1 to 1000")
        self.require(1 <= self.steps <= self.t, "steps", f"1 to t={self.t}")
        self.require(0 <= self.eta <= 1, "eta", "0 to 1")

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        """Return x (b, c, h, w) after diffusion and denoising."""
        image = to_model_range(resize(x, self.size, self.size))
        timesteps = trailing_timesteps(self.steps, self.t)
        x_t = add_noise(image, noise.fork("forward").normal(image), timesteps[0])
        reverse = noise.fork("reverse")
        for t, following in pairwise([*timesteps, CLEAN]):
            x_t = recomputed(partial(self._step, t, following), x_t, reverse)
        return resize(to_pixels(x_t).clamp(0, 1), *x.shape[2:])

    def _step(self, t: int, following: int, x_t: Tensor, noise: Noise) -> Tensor:
        """Return x at the timestep that follows."""
        image, _ = self.predict(x_t, t)
        return reverse_step(x_t, image, t, following, self.eta, noise.normal(x_t))
