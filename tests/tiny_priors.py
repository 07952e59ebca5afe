"""Diffusion priors that a test can afford: a tiny network, and one that is known in closed form."""

import math

import torch
from torch import nn

from defend.defenses.diffpure import DiffPure
from defend.defenses.diffusion import alpha_bar
from defend.defenses.restoration import ChannelMean, Pooling
from defend.defenses.two_stage import TwoStage
from defend.noise import Noise
from defend.trained_on import TrainedOn
from defend.weights.header import Header, save_weights

STAGES = {"sr": Pooling(2), "color": ChannelMean()}
TINY = {"weights": "untrained", "size": 8, "blocks": "8-8", "layers": 1}


def images(n=3, size=8, channels=3, seed=0, width=None):
    shape = (n, channels, size, width or size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def streams(n=3):
    return Noise.of(5, torch.arange(n))


class GaussianPrior(nn.Module):
    """Predict the noise for images whose values in [-1, 1] are independent, N(mean, sd^2).

    E[x_0 | x_t] = mean + sd^2 sqrt(abar) / (abar sd^2 + 1 - abar) (x_t - sqrt(abar) mean), and the
    noise is what is left of x_t.
    """

    def __init__(self, mean=0.1, sd=0.1, channels=3, size=8):
        super().__init__()
        self.mu, self.sd, self.channels, self.size = mean, sd, channels, size
        self.register_buffer("mean", torch.full((channels,), 0.5))

    def gain(self, t):
        """Return d E[x_0 | x_t] / d x_t."""
        abar = alpha_bar(t)
        return self.sd**2 * math.sqrt(abar) / (abar * self.sd**2 + 1 - abar)

    def forward(self, x_t, t):
        abar = alpha_bar(t)
        image = self.mu + self.gain(t) * (x_t - math.sqrt(abar) * self.mu)
        return (x_t - math.sqrt(abar) * image) / math.sqrt(1 - abar)


def with_prior(component, prior, **fields):
    """Return a purifier of this class with this prior in place of its network."""
    settings = {**TINY, "size": prior.size, "channels": prior.channels, **fields}
    purifier = component(**settings)
    purifier.frozen.net = prior
    return purifier


def tiny(component=TwoStage, seed=0, **fields):
    """Return a purifier with a tiny network whose output is not zero, in float32."""
    purifier = component(**{**TINY, **fields})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in purifier.net.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return purifier


def write_prior(path, purifier):
    """Write the weights of a purifier as `defend train` does."""
    header = Header(
        kind="defense",
        component="two-stage",
        architecture="ddpm",
        dataset="digits-m",
        fields={k: v for k, v in purifier.settings.items() if k != "weights"},
        trained_on=TrainedOn(kind="clean"),
        command="defend train two-stage",
        seed=0,
        commit="",
        uses=tuple(sorted(purifier.uses)),
    )
    save_weights(path, purifier.net.state_dict(), header)
    return path


BOTH = [TwoStage, DiffPure]
