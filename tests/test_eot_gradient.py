"""The gradient over EOT draws converges to its expectation."""

import math

import pytest
import torch
from attack_toys import INSIDE, make_target

from defend.defenses.gaussian import GaussianNoise

SIGMA = 0.05
DRAWS = [1, 4, 16, 64]


class Sine(torch.nn.Module):
    """The logit of class 0 is the sum of sin(6 x)."""

    def forward(self, x):
        z = torch.sin(6 * x).flatten(1).sum(1)
        return torch.stack([z, 0 * z], 1)


def first_logit(logits, _):
    return logits[:, 0]


def rms_error(draws):
    """Return the root mean square error of the gradient over so many draws.

    E sin(x + s u) = exp(-s^2 / 2) sin(x) for normal u, so the gradient's expectation is known.
    """
    x = INSIDE.repeat(4, 1, 1, 1)
    expected = 6 * math.exp(-((6 * SIGMA) ** 2) / 2) * torch.cos(6 * x)
    target = make_target(Sine(), GaussianNoise(sigma=SIGMA), n=len(x), eot=draws)
    labels = torch.zeros(len(x), dtype=torch.int64)
    gradient = target.gradient(x, labels, first_logit)[0]
    return float((gradient - expected).square().mean().sqrt())


def test_the_error_falls_as_one_over_the_root_of_the_number_of_draws():
    log_draws = torch.tensor(DRAWS).log()
    log_errors = torch.tensor([rms_error(draws) for draws in DRAWS]).log()
    centred = log_draws - log_draws.mean()
    slope = (centred * (log_errors - log_errors.mean())).sum() / centred.square().sum()
    assert float(slope) == pytest.approx(-0.5, abs=0.03)
