"""The training of a diffusion prior: predict the noise in noised images.

Ho, Jain, Abbeel, arXiv:2006.11239, algorithm 1, with the weights of Hang, Gu, Li, Bao, Chen, Hu,
Geng, Guo, arXiv:2303.09556, section 3.4:

    loss = mean w_t |e_theta(x_t, t) - e|^2,   w_t = min(snr_t, gamma) / snr_t,
    snr_t = abar_t / (1 - abar_t),             t uniform on 0 ... 999.

Symbols: gamma is ``gamma``, e_theta is the `Prior`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from defend.defenses.diffusion import (
    CLEAN,
    TIMESTEPS,
    alpha_bars,
    predict_image,
    reverse_step,
    to_model_range,
    to_pixels,
    trailing_timesteps,
)
from defend.defenses.sizes import resize
from defend.files import ensure_writable, user_path
from defend.noise import Noise
from defend.trained_on import TrainedOn
from defend.training.data import Source
from defend.training.quality import Quality
from defend.training.recipe import Recipe
from defend.training.sheets import write_grid

MEAN_IMAGES = 4096  # of the training images, at most, whose mean colour the prior keeps
LOSS_TOLERANCE = 1e-4  # of the loss, about .5 % of that of a trained prior
SHEET_SIDE = 4  # rows and columns of the sheet of samples
SHEET_STEPS = 20


class DdpmRecipe(Recipe):
    """Train the prior on clean images, without labels.

    The weights file holds the moving average of the prior's weights. Images of another
    size than the prior's are resized to it.
    """

    epochs: float = 30
    batch: int = 64
    optimiser: Literal["sgd", "adamw"] = "adamw"
    lr: float = 6e-4
    weight_decay: float = 1e-4
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    warmup: float = 0.05
    clip: float = 1.0
    ema: float = 0.9995
    gamma: float = 5.0  # the largest weight in units of the loss of the image; 0: weight 1
    flip: bool = False  # mirror half of the images: for photographs, not for digits
    sheet: str = ""  # a PNG file of samples, written whenever validation images are measured

    def validate(self) -> None:
        """Raise BadParameter if an option is outside its range."""
        super().validate()
        self.require(self.gamma >= 0, "gamma", ">= 0")
        self.require(not self.sheet or self.sheet.endswith(".png"), "sheet", "a file *.png")
        if self.sheet:
            ensure_writable(user_path(self.sheet).parent, "-o sheet=")

    @property
    def trained_on(self) -> TrainedOn:
        """Return "clean": the training sees clean images alone."""
        return TrainedOn(kind="clean")

    def initialise(self, trainee: Any, source: Source) -> None:
        """Store the mean colour of the training images in the prior."""
        x, _ = source.batch(0, min(MEAN_IMAGES, source.epoch), self.seed)
        trainee.mean.copy_(x.mean((0, 2, 3)))

    def complete(self, trainee: Any, source: Source) -> None:
        """Store the mean colour in a prior of another library, which holds none."""
        self.initialise(trainee, source)

    def loss(self, net: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """Return the mean over x (b, c, h, w) in [0, 1] of the weighted squared error."""
        return self.losses(net, self._augment(x, noise), noise).mean()

    def losses(self, net: Any, x: Tensor, noise: Noise) -> Tensor:
        """Return the loss of each image: float32 (b,)."""
        x = to_model_range(resize(x, net.size, net.size))
        t = (TIMESTEPS * noise.fork("t").uniform(x[:, 0, 0, 0])).long()
        e = noise.fork("e").normal(x)
        abar = alpha_bars(t)
        predicted: Tensor = net(abar.sqrt() * x + (1 - abar).sqrt() * e, t).float()
        return (predicted - e).square().mean((1, 2, 3)) * self._weights(abar)

    def quality(self, component: Any, x: Tensor, y: Tensor) -> Quality:
        """Return minus the loss of validation images, whose timesteps and noise never change."""
        with torch.no_grad():
            batches = self.batches(component, x, y)
            losses = [self.losses(component.net, images, noise) for images, _, noise in batches]
            if self.sheet:
                write_sheet(component.net, self.seed, user_path(self.sheet))
        return Quality("minus the loss", -float(torch.cat(losses).mean()), LOSS_TOLERANCE, len(x))

    def _augment(self, x: Tensor, noise: Noise) -> Tensor:
        if not self.flip:
            return x
        mirrored = noise.fork("flip").uniform(x[:, :1, :1, :1]) < 0.5
        return torch.where(mirrored, x.flip(-1), x)

    def _weights(self, abar: Tensor) -> Tensor:
        """Return w_t (b,) of abar_t (b, 1, 1, 1)."""
        snr = (abar / (1 - abar)).flatten()
        return snr.clamp(max=self.gamma) / snr if self.gamma else torch.ones_like(snr)


def sample(net: Any, noise: Noise, steps: int) -> Tensor:
    """Return images (len(noise), c, h, w) in [0, 1] that the prior draws in some steps, by DDIM.

    Song, Meng, Ermon, arXiv:2010.02502, equation 12 with sigma 0.
    """
    x_t = noise.normal(net.mean.new_empty(len(noise), net.channels, net.size, net.size))
    timesteps = trailing_timesteps(steps)
    for t, following in zip(timesteps, [*timesteps[1:], CLEAN], strict=True):
        image = predict_image(x_t, net(x_t, t), t)
        x_t = reverse_step(x_t, image, t, following, eta=0, z=0)
    return to_pixels(x_t).clamp(0, 1)


def write_sheet(net: Any, seed: int, path: Path) -> None:
    """Write a PNG of samples, always of the same noise."""
    noise = Noise.of(seed, torch.arange(SHEET_SIDE**2, device=net.mean.device)).fork("sheet")
    with torch.no_grad():
        write_grid(sample(net, noise, SHEET_STEPS), SHEET_SIDE, path)
