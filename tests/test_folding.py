"""Batch norms folded into the convolutions before them: the function of the network stays."""

import pytest
import torch
from torch import nn
from untrained_classifiers import IDS, SHAPES, untrained

from defend.classifiers.convnet import ConvNet
from defend.classifiers.resnet20 import ResNet20
from defend.classifiers.wrn16_4 import WideResNet
from defend.folding import fold_batch_norms


def randomise_statistics(classifier):
    """Change all statistics and parameters of batch norms, as training would."""
    generator = torch.Generator().manual_seed(3)

    def randomise(tensor, low):
        tensor.copy_(low + torch.rand(tensor.shape, generator=generator))

    for module in classifier.net.modules():
        if isinstance(module, nn.BatchNorm2d):
            randomise(module.running_mean, -0.5)
            randomise(module.running_var, 0.5)
            randomise(module.weight.data, 0.5)
            randomise(module.bias.data, -0.5)
    return classifier


def logits_and_gradient(net, x):
    """Return the logits of x, and the gradient of their log-sum-exp."""
    x = x.clone().requires_grad_()
    logits = net(x)
    return logits.detach(), torch.autograd.grad(logits.logsumexp(1).sum(), x)[0]


@pytest.mark.parametrize(("cls", "fields"), SHAPES, ids=IDS)
def test_a_folded_network_is_the_original_function(cls, fields):
    """Compare in float64: in float32 a rounding may cross the kink of a ReLU."""
    classifier = randomise_statistics(untrained(cls, **fields))
    net, x = classifier.net.double(), classifier.example(4).double()
    folded = logits_and_gradient(fold_batch_norms(net, x), x)
    for actual, expected in zip(folded, logits_and_gradient(net, x), strict=True):
        assert (actual - expected).norm() <= 1e-9 * expected.norm()


@pytest.mark.parametrize(("cls", "count"), [(ConvNet, 0), (ResNet20, 0), (WideResNet, 6)])
def test_only_batch_norms_that_follow_no_convolution_remain(cls, count):
    """In WRN-16-4, norms come before the convolutions (arXiv:1605.07146, figure 1).

    The first norm follows the first convolution. Those of five more blocks follow a sum, and so
    does the last one.
    """
    classifier = untrained(cls)
    classifier.run_as("float32", "contiguous")
    assert sum(isinstance(m, nn.BatchNorm2d) for m in classifier.net.modules()) == count


class RoundStraightThrough(torch.autograd.Function):
    """Round with the gradient of the identity: a trace records the rounding, not the gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.mul(64).round().div(64)

    @staticmethod
    def backward(ctx, g):
        return g


def round_under_no_grad(x):
    with torch.no_grad():
        difference = x.mul(64).round().div(64) - x
    return x + difference


FIRST_STEPS = {
    "plain": lambda x: x,
    "branch": lambda x: 2 * x if x.mean() > 0.5 else x,  # a trace cannot follow it
    "noise": lambda x: x * float(torch.rand(())),  # a trace fixes one value
    "custom backward": RoundStraightThrough.apply,
    "no_grad": round_under_no_grad,
}


class NetWithFirstStep(nn.Module):
    """Call a Python function before a convolution and its norm."""

    def __init__(self, first_step):
        super().__init__()
        self.first_step = first_step
        self.conv, self.bn = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

    def forward(self, x):
        return self.bn(self.conv(self.first_step(x))).flatten(1)


@pytest.mark.parametrize("step", FIRST_STEPS)
def test_a_network_that_a_trace_would_change_is_not_folded(step):
    net = NetWithFirstStep(FIRST_STEPS[step]).eval()
    is_unchanged = fold_batch_norms(net, torch.rand(2, 1, 8, 8)) is net
    assert is_unchanged == (step != "plain")


def test_a_network_without_batch_norms_is_returned():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert fold_batch_norms(net, torch.rand(2, 1, 8, 8)) is net
