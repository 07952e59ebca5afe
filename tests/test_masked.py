"""The truth that the audit is calibrated against: what `masked.best_known` says where it is known otherwise."""

import masked
import torch
from scipy.special import ndtr
from torch import Tensor, nn

from defend import Noise, Purifier

N = 1000


class Restless(Purifier):
    """Noise of sd 1, another one at every call: attempts share none of it."""

    card = masked.card("exact", stochastic=True)

    def validate(self) -> None:
        self.generator = torch.Generator().manual_seed(1)

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return (x + 0.1 * torch.randn(x.shape, generator=self.generator)).clamp(0, 1)


class Threshold(nn.Module):
    """Class 1 above one half."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([0.5 - x.flatten(1), x.flatten(1) - 0.5], 1)


def test_attempts_that_do_nothing_do_not_hide_the_one_that_works(monkeypatch):
    """Among 26 of them, the luckiest of ten draws would take its place on many images."""
    x = 0.5 + 0.1 * torch.linspace(-0.5, 1.3, N).view(N, 1, 1, 1)
    worked = x - 0.04
    monkeypatch.setattr(masked, "_attempts", lambda *_: iter([worked, *[x] * 25]))
    truth = float(ndtr((10 * (worked - 0.5)).numpy()).mean())
    found = masked.best_known(Restless(), Threshold(), x, torch.ones(N, dtype=torch.long), 0.05)
    assert found.shape == (N,) and abs(found.mean() - truth) < 0.02
