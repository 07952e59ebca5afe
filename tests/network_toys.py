"""Purifiers that hold networks, or compute steps again, and break one rule of the kit each."""

# ruff: noqa: ARG001, B023 (a purifier has the arguments of `purify`; a step may bind a loop late)

import copy

import torch
from torch.utils.checkpoint import checkpoint

from defend import recomputed
from defend.learned import Frozen
from defend.purifier import Card, Purifier, straight_through

EXACT = Card(paper="arXiv:0000.00000", gradient="exact", stochastic=False)
RANDOM = Card(paper="arXiv:0000.00000", gradient="exact", stochastic=True)
APPROXIMATE_RANDOM = Card(paper="arXiv:0000.00000", gradient="approximate", stochastic=True)


def linear():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Linear(8, 8)


class HoldsNetwork(Purifier):
    """Multiply each row of pixels by a matrix."""

    card = EXACT

    def validate(self):
        self.net = linear()

    def example(self, n=6):
        return super().example(n)[:, :, :8, :8]

    def purify(self, x, noise):
        return self.net(x).sigmoid()


GLOBAL_NETWORK = linear()


class CallsGlobalNetwork(HoldsNetwork):
    def validate(self):
        pass

    def purify(self, x, noise):
        return GLOBAL_NETWORK(x).sigmoid()


class UsesParametersOfGlobalNetwork(CallsGlobalNetwork):
    def purify(self, x, noise):
        return torch.nn.functional.linear(x, GLOBAL_NETWORK.weight).sigmoid()


class CallsForwardOfGlobalNetwork(CallsGlobalNetwork):
    def purify(self, x, noise):
        return GLOBAL_NETWORK.forward(x).sigmoid()


class HidesNetworkInClosure(HoldsNetwork):
    def validate(self):
        net = linear()
        self.call = lambda x: net(x)

    def purify(self, x, noise):
        return self.call(x).sigmoid()


class DeniesNetwork(HoldsNetwork):
    def networks(self):
        return []


class NamesCopyOfNetwork(HoldsNetwork):
    def networks(self):
        return [copy.deepcopy(self.net)]


class BuildsNetworkAtEachCall(HoldsNetwork):
    def purify(self, x, noise):
        return linear()(x).sigmoid()


class ActsInTrainingMode(HoldsNetwork):
    def purify(self, x, noise):
        self.net.train()
        y = self.net(x).sigmoid()
        self.net.eval()
        return y


class BuildsNetworkAtFirstCall(HoldsNetwork):
    """Nothing has frozen the network when it is called for the first time."""

    def validate(self):
        self.net = None

    def purify(self, x, noise):
        if self.net is None:
            self.net = linear()
        return self.net(x).sigmoid()


class StaysInTrainingMode(HoldsNetwork):
    """Only a part of the network, which is called no more."""

    def validate(self):
        self.net = torch.nn.Sequential(linear(), torch.nn.Dropout(0.5))

    def purify(self, x, noise):
        y = self.net(x).sigmoid()
        self.net[1].train()
        return y


class ThawsNetwork(HoldsNetwork):
    def purify(self, x, noise):
        self.net.bias.requires_grad_()
        return self.net(x).sigmoid()


class KeepsGradients(HoldsNetwork):
    def purify(self, x, noise):
        with torch.enable_grad():
            self.net.bias.requires_grad_()
            self.net(x.detach()).sum().backward()
        self.net.bias.requires_grad_(False)
        return self.net(x).sigmoid()


class NamesAnotherNetworkEachTime(HoldsNetwork):
    def networks(self):
        return [self.net, Frozen(linear())]


def add_noise(x, noise):
    return (x + 0.1 * noise.normal(x)).clamp(0, 1)


def checkpoints_naively(self, x, noise):
    for _ in range(3):
        x = checkpoint(add_noise, x, noise, use_reentrant=False)
    return x


def checkpoints_in_the_old_way(self, x, noise):
    return checkpoint(add_noise, x, noise, use_reentrant=True)


class CheckpointsAroundNetwork(HoldsNetwork):
    """The network is random, as before a training."""

    card = APPROXIMATE_RANDOM

    def purify(self, x, noise):
        return checkpoint(self.step, x, noise, use_reentrant=False)

    def step(self, x, noise):
        y = self.net(x).sigmoid() * noise.uniform(x)
        return straight_through(y, (255 * y).round() / 255)


def draws_for_its_gradient(self, x, noise):
    y = x * 1
    if y.requires_grad:
        y.register_hook(lambda g: g + noise.normal(g))
    return y


def drawing_step(x, noise, k):
    return ((1 - 0.1 * k) * x + 0.1 * (k + 1) * x.square() * noise.uniform(x)).clamp(0, 1)


def recomputes_the_last_step(self, x, noise):
    """The backward pass finds the last k in every step."""
    for k in range(3):
        x = recomputed(lambda x, n: drawing_step(x, n, k), x, noise)
    return x


def checkpoints_the_last_fork(self, x, noise):
    """In the backward pass all steps draw what the last one drew."""
    for k in range(3):
        x = checkpoint(lambda x: drawing_step(x, noise.fork(str(k)), 1), x, use_reentrant=False)
    return x


def checkpoints_the_last_fork_in_the_old_way(self, x, noise):
    for k in range(3):
        x = checkpoint(lambda x: drawing_step(x, noise.fork(str(k)), 1), x, use_reentrant=True)
    return x


def relaxes_the_last_step(self, x, noise, temperature):
    for k in range(3):
        x = recomputed(lambda x, _: straight_through((x * (k + 1)).square(), x * 1), x, noise)
    return x
