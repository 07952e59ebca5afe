"""Purifiers that answer an attack by a stand-in: its copies, its batches, its images."""

import pytest
import torch
from audit_toys import IMAGES, digits, run_check
from masked import make_card, nearest_in

from defend import Purifier

EPS = 0.2
STEPS_OFF = 0.6  # of eps: how far the pixels that an attack moves freely lie off the clean image


class StandsIn(Purifier):
    """Add a little noise, and turn around the images that `is_attacked` names."""

    card = make_card("approximate", stochastic=True)
    gradient_alone: bool = False  # if a gradient is requested, too

    def is_attacked(self, x):
        return torch.zeros(len(x), dtype=torch.bool)

    def purify(self, x, noise):
        noisy = (x + 0.02 * noise.normal(x)).clamp(0, 1)
        if self.gradient_alone and not x.requires_grad:
            return noisy
        return torch.where(self.is_attacked(x.detach()).view(-1, 1, 1, 1), noisy.flip(-1), noisy)


class InFours(StandsIn):
    """Stand in for four equal neighbours: an attack averages over more copies than three."""

    neighbours: int = 4

    def is_attacked(self, x):
        same = (x[1:] == x[:-1]).flatten(1).all(1)
        run, longest = 0, [0] * len(x)
        for i, equal in enumerate([False, *same.tolist()]):
            run = run + 1 if equal else 0
            for k in range(i - run, i + 1):
                longest[k] = run + 1
        return torch.tensor(longest) >= self.neighbours


class InCrowds(StandsIn):
    """Stand in for batches of more images than the audit's checks look at one by one."""

    crowd: int = 100

    def is_attacked(self, x):
        return torch.full((len(x),), len(x) > self.crowd)


class AtCorners(StandsIn):
    """Stand in for images that lie where attacks end: near a corner of the ball, as few points do.

    The clean images are known. Pixels that are at 0 or 1 in them may be moved to one side alone.
    """

    def is_attacked(self, x):
        memory = digits().rows("val", 0, IMAGES)[0]
        clean = memory[nearest_in(memory, x)]
        is_free = (clean > EPS) & (clean < 1 - EPS)
        moved = ((x - clean).abs() * is_free).flatten(1).sum(1) / is_free.flatten(1).sum(1)
        return moved > STEPS_OFF * EPS


STAND_INS = {  # check: who must be caught
    "company": [InFours(), InCrowds()],
    "watched": [InCrowds(gradient_alone=True), AtCorners(gradient_alone=True)],
}
UNSEEN = {"company": [InCrowds(crowd=1000)], "watched": [StandsIn()]}


@pytest.mark.parametrize("check", STAND_INS)
def test_a_stand_in_is_caught(check):
    for purifier in STAND_INS[check]:
        row = run_check(check, purifier, eps=EPS)
        assert row.turns, (purifier, row.measured)


@pytest.mark.parametrize("check", UNSEEN)
def test_what_no_attack_meets_is_none(check):
    for purifier in UNSEEN[check]:
        row = run_check(check, purifier, eps=EPS)
        assert not row.turns, (purifier, row.measured)


def test_the_attacks_images_are_looked_at_by_five_forwards():
    """A state that only an attack's images touch shows when these are purified again."""

    class Forgetful(AtCorners):
        """Answer the same images otherwise at every other call, if they lie at corners."""

        def validate(self):
            self.calls = 0

        def purify(self, x, noise):
            self.calls += 1
            if self.calls % 2:
                return (x + 0.02 * noise.normal(x)).clamp(0, 1)
            return super().purify(x, noise)

    row = run_check("five forwards", Forgetful(), eps=EPS)
    assert row.turns, row.measured
