"""Cycles of a deterministic iteration are skipped, and the last iterate is the same to the bit."""

import pytest
import torch
from attack_toys import INSIDE, Y, linear, make_target, start_noise
from torch import nn

from defend.attacks.cycle_detection import CycleDetector
from defend.attacks.pgd import PGD
from defend.defenses.gaussian import GaussianNoise


class Waves(nn.Module):
    """A sum of waves between two logits, on which sign steps soon cycle, each image on its own.

    Every image belongs to class 0.
    """

    def forward(self, x):
        d = 3 + (torch.sin(40 * x) + torch.cos(23 * x.flip(3))).flatten(1).sum(1) / 20
        return torch.stack([d, -d], 1)


def detect_nothing(self, x, k):
    """Replace CycleDetector.observe, so that no cycle is ever detected."""


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize(
    ("steps", "step"), [(200, 0.3), (201, 0.3), (202, 0.3), (203, 0.3), (60, 2.0), (61, 2.0)]
)
def test_pgd_leaves_cycles_early_with_the_same_result_to_the_bit(monkeypatch, steps, step, scored):
    """In whatever phase the cycle is left, the last iterate of all steps is returned."""
    x, attack = INSIDE[:, :, :2, :2], PGD(steps=steps, step=step, random_start=False)

    def run():
        target = make_target(model=Waves(), scored=scored)
        x_adv = attack.run(target, x, torch.zeros_like(Y), 0.05, start_noise())
        return x_adv, target.counts["backwards"]

    early, early_backwards = run()
    monkeypatch.setattr(CycleDetector, "observe", detect_nothing)
    complete, all_backwards = run()
    assert torch.equal(early, complete)
    assert early_backwards < all_backwards == len(x) * steps


@pytest.mark.parametrize("period", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("steps", [40, 41, 43, 50])
def test_the_steps_that_are_left_lead_to_the_last_point(period, steps):
    """Two sequences visit 3 and 11 points once, and then repeat a cycle."""

    def point(k, first_in_cycle):
        if k < first_in_cycle:
            return float(k)
        return float(first_in_cycle + (k - first_in_cycle) % period)

    def points(numbers):
        values = [point(int(k), first) for k, first in zip(numbers, (3, 11), strict=True)]
        return torch.tensor(values)[:, None]

    cycles, steps_done = CycleDetector(points([0, 0]), steps), torch.zeros(2)
    for k in range(1, steps + 1):
        is_moving = cycles.steps_left > 0
        steps_done = torch.where(is_moving, steps_done + 1, steps_done)
        cycles.observe(points(steps_done), k)
    assert torch.equal(points(steps_done), points([steps, steps]))
    assert (steps_done < steps).all()


def test_pgd_detects_no_cycle_on_a_stochastic_target():
    target = make_target(linear(), GaussianNoise(sigma=0.1), eot=1)
    PGD(steps=50, step=2.0).run(target, INSIDE, Y, 0.01, start_noise())
    assert target.counts["backwards"] == len(INSIDE) * 50
