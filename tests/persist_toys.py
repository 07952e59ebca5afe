"""Purifiers whose declared gradient misleads, and short searches, for the tests of `persist`."""

import torch
import torch.nn.functional as F
from attack_toys import INSIDE, start_noise
from masked import make_card
from torch import nn

from defend import Purifier
from defend.attacks.gradient_paths import PROBED
from defend.attacks.persist import Persist
from defend.defenses.vq import Codebook
from defend.gradients import straight_through

SHORT = {"steps": 20, "queries": 20, "targets": 3}
CODES = 6  # few, so that a nearest code stays the nearest over a long way
EPS = 0.02


class NearestPatch(Purifier):
    """Replace each patch of 2x2 pixels by the nearest of a few codes, straight through."""

    card = make_card("approximate")

    def purify(self, x, noise):
        return F.pixel_shuffle(self.codebook(F.pixel_unshuffle(x, 2)), 2)

    def relaxed(self, x, noise, temperature):
        patches = F.pixel_unshuffle(x, 2)
        return F.pixel_shuffle(self.codebook.relaxed(patches, len(x), temperature), 2)

    @property
    def codebook(self):
        book = Codebook(CODES, 12)
        book.codes = torch.rand(CODES, 12, generator=torch.Generator().manual_seed(5))
        return book


class Constant(nn.Module):
    """Say class 0 with the same logits, whatever the image."""

    def forward(self, x):
        return torch.tensor([3.0, 1.0, 0.0, -1.0]).expand(len(x), 4) + 0 * x.mean()


class Sealed(Purifier):
    """Turn and blur, and declare a gradient that points nowhere. Plain autograd knows better."""

    card = make_card("surrogate")

    def purify(self, x, noise):
        return F.avg_pool2d(x.flip(-1, -2), 3, 1, 1)

    def surrogate(self, x, noise):
        return 0 * x


class Carried(Purifier):
    """Declare that the gradient of a blur is that of the turned image, by a replacement."""

    card = make_card("approximate")

    def purify(self, x, noise):
        return straight_through(x.flip(-1, -2), F.avg_pool2d(x, 3, 1, 1))


class DetachedOnTheGrid(Purifier):
    """Detach images on the grid of 256 levels, as clean images are, and declare the identity."""

    card = make_card("identity")

    def purify(self, x, noise):
        on_grid = ((x * 255).round() / 255 == x).flatten(1).all(1).view(-1, 1, 1, 1)
        turned = x.flip(-1, -2)
        return torch.where(on_grid, turned.detach(), turned)


class FailsLater(Sealed):
    """Raise where more than the probed images are differentiated."""

    def purify(self, x, noise):
        if torch.is_grad_enabled() and x.requires_grad and len(x) > PROBED:
            raise RuntimeError("out of something")
        return super().purify(x, noise)


class Rippled(Purifier):
    """Add ripples whose slope hides that of the image at every point, but not on average."""

    card = make_card("exact")

    def purify(self, x, noise):
        return (x + 0.02 * torch.sin(500 * x)).clamp(0, 1)


def wrong(target, y, x_adv):
    """Return which images the pipeline gets wrong."""
    return target.logits(x_adv).argmax(1) != y


def attack(target, y, eps=EPS, x=INSIDE, **fields):
    """Return the adversarial images of a short search, with its notes."""
    x_adv = Persist(**{**SHORT, **fields}).run(target, x, y, eps, start_noise(len(x)))
    return x_adv, dict(target.notes)


def labels_of(target, x=INSIDE):
    """Return the classes that the pipeline gives to clean images."""
    return target.again().logits(x).argmax(1)
