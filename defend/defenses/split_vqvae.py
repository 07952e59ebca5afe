"""Split-VQ-VAE: restore an image, or each of its quadrants, by a VQ-VAE (arXiv:1711.00937) whose codes stand for clean images.

The two papers on 4-Split-VQ-VAE for MNIST and FGSM: sections 2 to 4 and table 1 of the longer one. The table cannot be read literally;
docs/split-vqvae.md says what it prints and what stands here instead.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defend.defenses.corrupt import attacked, corrupted, recognised, surrogates
from defend.defenses.vq import Codec, MovingMeans, as_rows, nearest
from defend.errors import BadParameter, Mismatch
from defend.noise import Noise
from defend.purifier import Card, LearnedPurifier, straight_through
from defend.training.data import Arrays, Batch, Source
from defend.training.loop import SAVE_EVERY, train
from defend.training.recipe import Recipe, read_recipe

FIRST = 1024  # images that the first codes are drawn from
VAL = 1000  # validation images that are restored at the end of an epoch
CUT = 256  # images at a time where no gradient is needed


class SplitVQVAE(LearnedPurifier):
    """x -> grid x grid pieces -> encoder, nearest code, decoder -> pieces put together; ``grid=1`` is the whole image.

    The pieces of all images go through the network as one batch. Gradient: autograd through encoder and decoder, straight through the
    choice of the nearest code, which has none.
    """

    card = Card(
        paper="none: two conference papers without identifiers, see docs/split-vqvae.md; arXiv:1711.00937",
        gradient="approximate",
        stochastic=False,
    )
    grid: int = 2  # pieces along each side
    codes: int = 300  # the paper's number of embeddings, K
    embedding_dim: int = 64  # not stated in the papers
    hidden: int = 128  # the paper's number of filters
    blocks: int = 1  # residual blocks in the encoder, and as many in the decoder
    channels: int = 1
    size: int = 28  # height and width, in pixels

    def validate(self) -> None:
        self.require(self.size >= 1, "size", ">= 1")
        self.require(
            self.grid >= 1 and self.size % self.grid == 0, "grid", f"a divisor of size={self.size}"
        )
        self.require(self.codes >= 2, "codes", ">= 2")
        self.require(self.embedding_dim >= 1, "embedding_dim", ">= 1")
        self.require(self.hidden >= 1, "hidden", ">= 1")
        self.require(self.blocks >= 0, "blocks", ">= 0")
        self.require(self.channels in (1, 3), "channels", "1 or 3")
        object.__setattr__(self, "card", replace(self.card, channels=(self.channels,)))

    def build(self) -> nn.Module:
        return Codec(self.channels, self.hidden, self.blocks, self.embedding_dim, self.codes)

    def example(self, n: int = 6) -> Tensor:
        return torch.rand(
            n, self.channels, self.size, self.size, generator=torch.Generator().manual_seed(7)
        )

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        if x.shape[2:] != (self.size, self.size):
            raise Mismatch(
                f"{type(self).__name__}(size={self.size}): got images {tuple(x.shape)}. Load weights for their size, or train some."
            )
        return join(self.net(split(x, self.grid)), self.grid)

    def fit(
        self,
        x: Tensor | Source,
        y: Tensor | None = None,
        *,
        val: Batch | None = None,
        resume: Path | None = None,
        save_every: float = SAVE_EVERY,
        progress: bool = True,
        **recipe: Any,
    ) -> None:
        """Train on images x (n, c, h, w) in [0, 1] or on a Source; `recipe`: fields of RestorerRecipe. Labels y (n,) are needed by
        perturbation=adversarial alone. val: images whose restoration is reported. Raises BadParameter."""
        options = read_recipe(RestorerRecipe, recipe, self.component)
        if y is None and isinstance(x, Tensor) and options.adversarial:
            raise BadParameter(
                "fit: perturbation=adversarial trains classifiers beside the purifier: give labels y, or choose perturbation=corrupted"
            )
        source = (
            x
            if not isinstance(x, Tensor)
            else Arrays(x, torch.zeros(len(x), dtype=torch.int64) if y is None else y)
        )
        device = next(self.net.parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(options.seed)
            trainee = Trainee(self, options).to(device)
        trainee.start(
            source.to(device).batch(0, min(FIRST, source.epoch), options.seed)[0], options.seed
        )
        score = (
            partial(_score, val=(val[0][:VAL].to(device), val[1][:VAL].to(device)), recipe=options)
            if val
            else None
        )
        train(
            trainee,
            source,
            partial(_loss, recipe=options),
            options,
            score,
            resume,
            save_every,
            progress,
        )
        self.file, self.weights, self.fitted_on = None, "untrained", options.trained_on


def split(x: Tensor, grid: int) -> Tensor:
    """(b, c, h, w) -> (b grid^2, c, h / grid, w / grid): the pieces of the first image row by row, then those of the next."""
    b, c, h, w = x.shape
    return (
        x.reshape(b, c, grid, h // grid, grid, w // grid)
        .permute(0, 2, 4, 1, 3, 5)
        .reshape(-1, c, h // grid, w // grid)
    )


def join(pieces: Tensor, grid: int) -> Tensor:
    """The inverse of `split`."""
    _, c, h, w = pieces.shape
    return (
        pieces.reshape(-1, grid, grid, c, h, w)
        .permute(0, 3, 1, 4, 2, 5)
        .reshape(-1, c, grid * h, grid * w)
    )


class RestorerRecipe(Recipe):
    """`paper`: clean images, and nothing else, as the papers do. `denoise`: perturbed images, whose clean ones are the targets."""

    epochs: float = 10
    optimiser: Literal["sgd", "adamw"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0
    recipe: Literal["paper", "denoise"] = "paper"
    commitment: float = 0.25  # arXiv:1711.00937, equation 3: beta
    perturbation: Literal["corrupted", "adversarial"] = (
        "corrupted"  # denoise: by no classifier, or also by surrogates that train beside it
    )
    amplitude: float = 0.4  # denoise: each image's own, up to this, in the L-inf norm
    classes: int = 10  # of the surrogates
    recognition: float = (
        0.1  # adversarial: weight of the surrogates' cross entropy on restored images
    )

    def validate(self) -> None:
        super().validate()
        self.require(self.commitment >= 0, "commitment", ">= 0")
        self.require(0 < self.amplitude <= 1, "amplitude", "> 0 and <= 1")
        self.require(self.classes >= 2, "classes", ">= 2")
        self.require(self.recognition >= 0, "recognition", ">= 0")
        for field in ("perturbation", "amplitude"):
            self._only(field, self.recipe == "denoise", "recipe=denoise")
        self._only("recognition", self.adversarial, "recipe=denoise and perturbation=adversarial")

    def _only(self, field: str, counts: bool, where: str) -> None:
        self.require(
            counts or getattr(self, field) == getattr(type(self), field),
            field,
            f"left out, as it counts with {where} alone",
        )

    @property
    def adversarial(self) -> bool:
        return self.recipe == "denoise" and self.perturbation == "adversarial"

    @property
    def trained_on(self) -> str:
        if self.recipe == "paper":
            return "clean"
        return (
            f"adversarial(fgsm, Linf {self.amplitude:g}, 3 surrogates)"
            if self.adversarial
            else "corrupted"
        )


class Trainee(nn.Module):
    """What exists while training: the codec, the moving means behind its codes, and the surrogates."""

    def __init__(self, purifier: SplitVQVAE, recipe: RestorerRecipe) -> None:
        super().__init__()
        self.grid = purifier.grid
        self.codec: Codec = purifier.net  # type: ignore[assignment]
        self.means = MovingMeans(purifier.codes, purifier.embedding_dim)
        self.surrogates = (
            surrogates(purifier.channels, purifier.size, recipe.classes)
            if recipe.adversarial
            else nn.ModuleList()
        )

    @torch.no_grad()
    def start(self, x: Tensor, seed: int) -> None:
        """Codes at encoded pieces of x, and black, grey or white as often as there: from mid-grey, all codes would first learn one thing, the
        background, become one, and leave the sigmoid where it has no slope."""
        self.codec.decoder[-1].bias.fill_(x.mean().clamp(0.01, 0.99).logit())  # type: ignore[operator]
        noise = Noise.of(seed, torch.arange(len(x), device=x.device)).fork("start")
        self.means.start(
            self.codec.codebook.codes, as_rows(self.codec.encode(split(x, self.grid))), noise
        )

    def forward(self, seen: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Images seen (b, c, h, w) -> restored ones, and |z - chosen code|^2 (arXiv:1711.00937, equation 3, without beta). Moves the codes."""
        pieces, codes = split(seen, self.grid), self.codec.codebook.codes
        z = self.codec.encode(pieces)
        numbers = nearest(as_rows(z), codes)
        chosen = self.codec.codebook.at(numbers, z)
        restored = self.codec.decode(straight_through(z, chosen), *pieces.shape[2:])
        if self.training:
            self.means.update(codes, as_rows(z.detach()), numbers, noise)
        return join(restored, self.grid), F.mse_loss(z, chosen)


def _perturbed(net: Any, x: Tensor, y: Tensor, noise: Noise, recipe: RestorerRecipe) -> Tensor:
    if recipe.recipe == "paper":
        return x
    return (
        attacked(net.surrogates, x, y, recipe.amplitude, noise)
        if recipe.adversarial
        else corrupted(x, recipe.amplitude, noise)
    )


def _loss(net: Any, x: Tensor, y: Tensor, noise: Noise, recipe: RestorerRecipe) -> Tensor:
    """Squared error in units of the images' variance + beta |z - sg(e)|^2; with surrogates, what they read in restored images, and, apart
    from it, what they learn from clean ones."""
    restored, distance = net(
        _perturbed(net, x, y, noise.fork("perturb"), recipe), noise.fork("codes")
    )
    loss: Tensor = F.mse_loss(restored, x) / x.var() + recipe.commitment * distance
    if not recipe.adversarial:
        return loss
    return (
        loss
        + recipe.recognition * recognised(net.surrogates, restored, y)
        + sum(F.cross_entropy(s(x).float(), y) for s in net.surrogates)
    )


@torch.no_grad()
def _score(net: Any, val: Batch, recipe: RestorerRecipe) -> float:
    """PSNR in dB of validation images restored, perturbed ones where training perturbs."""
    noise = Noise.of(recipe.seed, torch.arange(len(val[0]), device=val[0].device)).fork("val")
    cuts = zip(val[0].split(CUT), val[1].split(CUT), noise.split(CUT), strict=True)
    squares = [
        (net(_perturbed(net, x, y, n, recipe), n)[0] - x).square().mean((1, 2, 3))
        for x, y, n in cuts
    ]
    return float(-10 * torch.cat(squares).mean().clamp(min=1e-12).log10())
