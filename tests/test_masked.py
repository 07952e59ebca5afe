"""The truth that the audit is calibrated against: `best_known` where the truth is computable."""

import best_known
import masked
import torch
from scipy.special import ndtr
from torch import Tensor, nn

from defend import Noise, Purifier

IMAGES = 1000


class Restless(Purifier):
    """Add noise of standard deviation 0.1, another one at every call: attempts share none of it."""

    card = masked.make_card("exact", stochastic=True)

    def validate(self) -> None:
        self.generator = torch.Generator().manual_seed(1)

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return (x + 0.1 * torch.randn(x.shape, generator=self.generator)).clamp(0, 1)


class Threshold(nn.Module):
    """Classify images of one pixel: class 1 above one half."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([0.5 - x.flatten(1), x.flatten(1) - 0.5], 1)


def test_attempts_that_do_nothing_do_not_hide_the_one_that_works(monkeypatch):
    """Among 26 attempts, the luckiest of ten draws would take its place on many images."""
    x = 0.5 + 0.1 * torch.linspace(-0.5, 1.3, IMAGES).view(IMAGES, 1, 1, 1)
    x_adv = x - 0.04
    monkeypatch.setattr(best_known, "attack_in_every_way", lambda _: iter([x_adv, *[x] * 25]))
    truth = float(ndtr((10 * (x_adv - 0.5)).numpy()).mean())
    labels = torch.ones(IMAGES, dtype=torch.long)
    shares = best_known.best_known(Restless(), Threshold(), x, labels, 0.05)
    assert shares.shape == (IMAGES,)
    assert abs(shares.mean() - truth) < 0.02
