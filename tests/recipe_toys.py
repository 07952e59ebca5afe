"""A learned purifier that trains within a second, with recipes, for the tests of training."""

import torch
import torch.nn.functional as F
from torch import nn

from defend.learned import Frozen
from defend.purifier import Card, LearnedPurifier
from defend.trained_on import TrainedOn
from defend.training.objectives import Objective
from defend.training.perturbations import add_gaussian
from defend.training.quality import Quality
from defend.training.recipe import Recipe
from defend.weights.header import Header, save_weights

FIXED = {"precision": "float32", "layout": "contiguous", "progress": False}


class DenoiseRecipe(Recipe):
    """Remove Gaussian noise."""

    epochs: float = 2
    batch: int = 16
    sigma: float = 0.1

    def loss(self, net, x, y, noise):
        return F.mse_loss(net(add_gaussian(x, self.sigma, noise)), x)

    @property
    def trained_on(self):
        return TrainedOn(kind="corrupted")


class Denoiser(LearnedPurifier):
    """A convolution with a batch norm, for images (b, 1, 8, 8)."""

    card = Card(paper="none: a toy", gradient="exact", stochastic=False, channels=(1,))
    recipe = DenoiseRecipe
    channels: int = 1
    size: int = 8
    hidden: int = 4

    def build(self):
        return nn.Sequential(
            nn.Conv2d(1, self.hidden, 3, padding=1),
            nn.BatchNorm2d(self.hidden),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv2d(self.hidden, 1, 3, padding=1),
        )

    def purify(self, x, noise):
        return self.net(x).clamp(0, 1)


def grey_images(n=48, seed=0):
    """Return images (n, 1, 8, 8) in [0, 1] and labels below 10."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, 8, 8, generator=generator)
    return x, torch.randint(0, 10, (n,), generator=generator)


def save_toy(component, path, trained_on):
    """Write the weights of an unregistered component, and return the path."""
    header = Header(
        kind=component.kind,
        component=component.component,
        architecture=component.component,
        dataset="digits",
        fields={k: v for k, v in component.settings.items() if k != "weights"},
        trained_on=trained_on,
        command="",
        seed=0,
        commit="",
    )
    save_weights(path, component.net.state_dict(), header)
    return path


def copy_state(net):
    return {name: t.clone() for name, t in net.state_dict().items()}


def changed_tensors(net, state):
    """Return the names of tensors that differ from the copy by a bit."""
    return {name for name, t in net.state_dict().items() if not torch.equal(t, state[name])}


def make_backbone():
    """Return a module with running statistics, affine parameters and dropout."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5)
    )


class WithBackbone(nn.Module):
    """A backbone and a head, from images to images."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 1, 3, padding=1))

    def forward(self, x):
        return self.head(self.backbone(x))


class FrozenTypeDenoiser(Denoiser):
    """The backbone is a module of the type Frozen."""

    def build(self):
        return WithBackbone(Frozen(make_backbone()))


class FrozenInBuildDenoiser(Denoiser):
    """The author froze the backbone's parameters in `build`."""

    def build(self):
        net = WithBackbone(make_backbone())
        net.backbone.requires_grad_(False)
        return net


class FreezingRecipe(DenoiseRecipe):
    def trainee(self, component):
        component.net.backbone.requires_grad_(False)
        return component.net


class FrozenInTraineeDenoiser(Denoiser):
    """The author froze the backbone's parameters in `trainee`."""

    recipe = FreezingRecipe

    def build(self):
        return WithBackbone(make_backbone())


class NothingFrozenDenoiser(Denoiser):
    """The broken example: the backbone is trained."""

    def build(self):
        return WithBackbone(make_backbone())


class GuidedRecipe(DenoiseRecipe):
    """Keep what a frozen classifier says."""

    classifier: str = "convnet"

    def trainee(self, component):
        self.guide = self.load_frozen(self.classifier, component).network
        return component.net

    def loss(self, net, x, y, noise):
        return super().loss(net, x, y, noise) + F.cross_entropy(self.guide(net(x)), y)

    @property
    def needs_labels(self):
        return True


class GuidedDenoiser(Denoiser):
    recipe = GuidedRecipe


class PairTrainee(nn.Module):
    """A network, and a critic that exists in training only."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.critic = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))


class PairRecipe(DenoiseRecipe):
    """A pair of opponents: the critic tells restored images from clean ones."""

    def trainee(self, component):
        return PairTrainee(component.net)

    def objectives(self):
        critic = Objective("critic", self.critic_loss, ("critic.*",), lr_factor=0.5)
        return (Objective("denoiser", self.loss), critic)

    def loss(self, net, x, y, noise):
        restored = net.net(add_gaussian(x, self.sigma, noise))
        return F.mse_loss(restored, x) - 0.01 * net.critic(restored).mean()

    def critic_loss(self, net, x, y, noise):
        restored = net.net(add_gaussian(x, self.sigma, noise)).detach()
        return net.critic(restored).sigmoid().mean() - net.critic(x).sigmoid().mean()

    def quality(self, component, x, y):
        errors = [
            (component.purified(add_gaussian(images, self.sigma, noise)) - images).square().mean()
            for images, _, noise in self.batches(component, x, y, size=16)
        ]
        return Quality("minus the squared error", -float(torch.stack(errors).mean()), 1e-4)


class PairDenoiser(Denoiser):
    recipe = PairRecipe
