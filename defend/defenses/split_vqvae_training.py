"""The training of `split_vqvae`: the loss, and the modules that exist in training only."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defend.defenses.codec import Codec
from defend.defenses.corrupt import (
    attack_surrogates,
    corrupt,
    recognition_loss,
)
from defend.defenses.pieces import join_pieces, split_image
from defend.defenses.split_vqvae_recipe import RestorerRecipe
from defend.defenses.vq import MovingMeans, as_rows, nearest_codes
from defend.errors import BadParameter
from defend.noise import Noise
from defend.purifier import straight_through
from defend.training.data import Arrays, Batch, Source
from defend.training.loop import train

FIRST_IMAGES = 1024  # images from which the first codes are drawn
VAL_IMAGES = 1000  # validation images that are restored at the end of an epoch
VAL_BATCH = 256  # images restored together where no gradient is needed


def as_source(x: Tensor | Source, y: Tensor | None, recipe: RestorerRecipe) -> Source:
    """Return images as a source. Raises BadParameter if labels are needed and missing."""
    if not isinstance(x, Tensor):
        return x
    if y is None and recipe.adversarial:
        raise BadParameter(
            "fit: expected labels y with perturbation=adversarial, which trains classifiers beside"
            " the purifier, got none; give labels, or choose perturbation=corrupted"
        )
    return Arrays(x, torch.zeros(len(x), dtype=torch.int64) if y is None else y)


def train_restorer(
    trainee: Trainee,
    source: Source,
    recipe: RestorerRecipe,
    val: Batch | None,
    resume: Path | None,
    save_every: float,
    progress: bool,
) -> None:
    """Train the codec of the trainee, and report the PSNR of restored validation images.

    resume, save_every: see `defend.training.loop.train`.
    """
    device = trainee.means.counts.device
    first_images = min(FIRST_IMAGES, source.epoch)
    trainee.start(source.to(device).batch(0, first_images, recipe.seed)[0], recipe.seed)
    score = None
    if val:
        images, labels = (t[:VAL_IMAGES].to(device) for t in val)
        score = partial(_psnr, val=(images, labels), recipe=recipe)
    loss = partial(_loss, recipe=recipe)
    train(trainee, source, loss, recipe, score, resume, save_every, progress)


class Trainee(nn.Module):
    """Hold all that is trained: the codec, the moving means of its codes, and the surrogates.

    grid: pieces along each side of an image. surrogates: empty unless the recipe is adversarial.
    """

    def __init__(self, codec: Codec, grid: int, surrogates: nn.ModuleList) -> None:
        super().__init__()
        self.grid = grid
        self.codec = codec
        self.means = MovingMeans(*codec.codebook.codes.shape)
        self.surrogates = surrogates
        self.to(codec.codebook.codes.device)

    @torch.no_grad()
    def start(self, x: Tensor, seed: int) -> None:
        """Place the codes at encoded pieces of x, and set the output to the brightness of x.

        If training started from mid-grey, all codes would first learn the background, become one
        code, and leave the sigmoid where it has no slope.
        """
        brightness = x.mean().clamp(0.01, 0.99)
        self.codec.decoder[-1].bias.fill_(brightness.logit())  # type: ignore[operator]
        noise = Noise.of(seed, torch.arange(len(x), device=x.device)).fork("start")
        z = self.codec.encode(split_image(x, self.grid))
        self.means.start(self.codec.codebook.codes, as_rows(z), noise)

    def forward(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Return the restored images x (b, c, h, w), and the mean of |z - chosen code|^2.

        The second one is the commitment term of equation 3 of arXiv:1711.00937, without beta. In
        training mode the codes move.
        """
        pieces, codes = split_image(x, self.grid), self.codec.codebook.codes
        z = self.codec.encode(pieces)
        indices = nearest_codes(as_rows(z), codes)
        chosen = self.codec.codebook.look_up(indices, z)
        restored = self.codec.decode(straight_through(z, chosen), *pieces.shape[2:])
        if self.training:
            self.means.update(codes, as_rows(z.detach()), indices, noise)
        return join_pieces(restored, self.grid), F.mse_loss(z, chosen)


def _perturb(net: Any, x: Tensor, y: Tensor, noise: Noise, recipe: RestorerRecipe) -> Tensor:
    """Return the images that the recipe restores."""
    if recipe.recipe == "paper":
        return x
    if recipe.adversarial:
        return attack_surrogates(net.surrogates, x, y, recipe.amplitude, noise)
    return corrupt(x, recipe.amplitude, noise)


def _loss(net: Any, x: Tensor, y: Tensor, noise: Noise, recipe: RestorerRecipe) -> Tensor:
    """Return the squared error in units of the images' variance + beta |z - sg(e)|^2.

    With surrogates, add their cross-entropy on restored images, which trains the codec alone, and
    their cross-entropy on clean images, which trains them.
    """
    perturbed = _perturb(net, x, y, noise.fork("perturb"), recipe)
    restored, distance = net(perturbed, noise.fork("codes"))
    loss: Tensor = F.mse_loss(restored, x) / x.var() + recipe.commitment * distance
    if not recipe.adversarial:
        return loss
    loss = loss + recipe.recognition * recognition_loss(net.surrogates, restored, y)
    return loss + sum(F.cross_entropy(s(x).float(), y) for s in net.surrogates)


@torch.no_grad()
def _psnr(net: Any, val: Batch, recipe: RestorerRecipe) -> float:
    """Return the PSNR in dB of restored validation images, perturbed if training perturbs."""
    images, labels = val
    streams = Noise.of(recipe.seed, torch.arange(len(images), device=images.device)).fork("val")
    batches = zip(
        images.split(VAL_BATCH), labels.split(VAL_BATCH), streams.split(VAL_BATCH), strict=True
    )
    squared_errors = []
    for x, y, noise in batches:
        restored, _ = net(_perturb(net, x, y, noise, recipe), noise)
        squared_errors.append((restored - x).square().mean((1, 2, 3)))
    return float(-10 * torch.cat(squared_errors).mean().clamp(min=1e-12).log10())
