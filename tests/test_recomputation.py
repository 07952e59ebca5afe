"""`defend.recomputed`: the same output, gradient and noise as a plain call, in less memory."""

import os
import subprocess
import sys
from pathlib import Path

import network_toys
import pytest
import torch

import defend
from defend import Noise, straight_through
from defend.testing import kit, run_checks
from defend.testing.defense_checks import (
    check_recomputed_steps_are_the_same_steps,
    check_recomputed_steps_draw_the_same_noise,
)

STEPS = 5
MOST_MEMORY = 1.3  # times the peak at a tenth of the steps


def plain(step, x, noise):
    return step(x, noise)


class Sampler(network_toys.HoldsNetwork):
    """Mix a network's output and noise, step by step; the network is random, as before a training.

    `draws` are the ways to draw in one step.
    """

    card = network_toys.RANDOM
    steps: int = STEPS
    draws: str = "normal"
    apply = staticmethod(defend.recomputed)

    def purify(self, x, noise):
        for number in range(self.steps):
            x = self.apply(self.step, x, noise.fork(str(number)) if "fork" in self.draws else noise)
        return self.finish((x + 0.01 * noise.normal(x)).clamp(0, 1))

    def step(self, x, noise):
        drawn = noise.fork("inner") if self.draws == "inner fork" else noise
        values = drawn.normal(x)
        if self.draws == "twice":
            values = values * drawn.uniform(x)
        return (0.8 * x + 0.1 * self.net(x).sigmoid() + 0.05 * values).clamp(0, 1)

    def finish(self, x):
        return x


class RoundingSampler(Sampler):
    """Round at the end."""

    card = network_toys.APPROXIMATE_RANDOM

    def finish(self, x):
        return straight_through(x, (255 * x).round() / 255)


DRAWS = ["normal", "twice", "fork of each step", "inner fork"]
EVERY_SAMPLER = pytest.mark.parametrize("kind", [Sampler, RoundingSampler])


def output_and_gradient(sampler, seed=0):
    """Return the purified images, the gradient of their sum of squares, and the next draw."""
    x = sampler.example(4).requires_grad_()
    noise = Noise.of(seed, torch.arange(4))
    y = sampler.purify(x, noise)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    return y.detach(), gradient, noise.normal(x.detach())


@EVERY_SAMPLER
@pytest.mark.parametrize("draws", DRAWS)
def test_output_gradient_and_noise_are_those_of_a_plain_call(kind, draws):
    with_graph, recomputed = kind(draws=draws), kind(draws=draws)
    recomputed.net = with_graph.net
    object.__setattr__(with_graph, "apply", plain)
    expected, received = output_and_gradient(with_graph), output_and_gradient(recomputed)
    for name, a, b in zip(["output", "gradient", "next draw"], expected, received, strict=True):
        assert torch.equal(a, b), f"another {name}"
    other_noise = output_and_gradient(recomputed, seed=1)
    assert not torch.equal(other_noise[1], received[1])


def test_the_noise_goes_on_without_a_gradient():
    sampler = Sampler()
    noise, expected = Noise.of(0, torch.arange(4)), Noise.of(0, torch.arange(4))
    x = sampler.example(4)
    with torch.no_grad():
        sampler.apply(sampler.step, x, noise)
        sampler.step(x, expected)
    assert torch.equal(noise.normal(x), expected.normal(x))


@EVERY_SAMPLER
@pytest.mark.parametrize("draws", DRAWS)
def test_a_sampler_passes_the_check(kind, draws):
    check_recomputed_steps_draw_the_same_noise(kind(draws=draws))
    check_recomputed_steps_are_the_same_steps(kind(draws=draws))


@EVERY_SAMPLER
def test_a_sampler_in_small_cuts_passes_the_check(kind):
    """max_batch computes its cuts again in the backward pass, and the steps inside of them."""
    check_recomputed_steps_draw_the_same_noise(kind(max_batch=2))
    check_recomputed_steps_are_the_same_steps(kind(max_batch=2))


def test_the_kit_finds_nothing_in_a_sampler():
    network = network_toys.linear()

    def make():
        sampler = Sampler()
        sampler.net = network
        return sampler

    failures = {
        name: text for name, status, text in run_checks("defense", make) if status == "fail"
    }
    assert failures == {}
    assert check_recomputed_steps_draw_the_same_noise in kit("defense")


# Only the naive sampler keeps what a hundred steps computed; both hold their inputs.
PROGRAM = """
import sys
from pathlib import Path
import torch
from torch import nn
import defend

steps, mode = int(sys.argv[1]), sys.argv[2]
torch.manual_seed(0)
torch.set_num_threads(1)
net = nn.Sequential(nn.Conv2d(1, 512, 1), nn.SiLU(), nn.Softsign(), nn.Conv2d(512, 1, 1))
net.requires_grad_(False)

def step(x, noise):
    return (0.9 * x + 0.1 * net(x).sigmoid() + 0.01 * noise.normal(x)).clamp(0, 1)

def purify(x, noise, steps):
    for _ in range(steps):
        x = defend.recomputed(step, x, noise) if mode == "recomputed" else step(x, noise)
    return x

def peak():  # of this program alone: ru_maxrss would begin with the size of the program before exec
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])

def run(size, steps):
    x = torch.rand(1, 1, size, size).requires_grad_()
    purify(x, defend.Noise.of(0, torch.arange(1)), steps).sum().backward()

run(8, 2)  # what torch loads at the first call
before = peak()
run(32, steps)
print(peak() - before)
"""


def peak_memory(steps, mode):
    """Return the KiB that a sampler of so many steps and its gradient take."""
    command = [sys.executable, "-c", PROGRAM, str(steps), mode]
    # Every tensor on pages of its own: otherwise glibc puts the inputs of steps, which stay, into
    # the holes that activations leave, which then fit no activation.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "4096"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    return int(done.stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_memory_hardly_grows_with_the_number_of_steps():
    ten, hundred = peak_memory(10, "recomputed"), peak_memory(100, "recomputed")
    assert hundred <= MOST_MEMORY * ten
    assert peak_memory(10, "plain") > 3 * ten  # activations dominate, so that the ratio says much
