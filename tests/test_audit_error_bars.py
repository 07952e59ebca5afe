"""Required checks accuse nobody by chance: shares have error bars, and other draws must agree."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from audit_toys import context_of, find_check
from masked import make_card

from defend import Purifier
from defend.auditing import gradients, state
from defend.auditing.budget import budget_for
from defend.auditing.context import Context
from defend.auditing.error_bars import least_share
from defend.auditing.session import Session

IMAGES = 400


@pytest.mark.parametrize(
    ("scores", "is_sure"),
    [
        ([1] + [0] * 31, False),
        ([1] * 2 + [0] * 30, True),
        ([1] * 2 + [0] * 98, False),
        ([1] * 3 + [0] * 97, True),
        ([0.1] * 4 + [0] * 28, False),  # 4 right draws of 320
        ([0.5] * 8 + [0] * 24, True),
        ([0] * 32, False),
    ],
)
def test_a_share_of_a_hundredth_needs_more_than_one_image(scores, is_sure):
    assert (least_share(np.array(scores, float)) > 0.01) == is_sure


class ZeroForSome(Purifier):
    """Have no gradient for the first images of a batch, which only this test may do."""

    card = make_card("approximate")
    images: int = 1

    def purify(self, x, noise):
        is_cut = (torch.arange(len(x)) < self.images).view(-1, 1, 1, 1)
        return torch.where(is_cut, x.detach(), x)


@pytest.mark.parametrize(("images", "passed"), [(0, True), (1, True), (2, False), (32, False)])
def test_one_image_without_a_gradient_is_no_mask(images, passed):
    context = context_of(ZeroForSome(images=images), n=32)
    assert find_check("zero gradient", context).run(Session(context)).passed == passed


class Trembles(Purifier):
    """Have a gradient of which few copies say nothing, and many copies enough."""

    card = make_card("surrogate", stochastic=True)
    sigma: float = 20.0

    def purify(self, x, noise):
        return (x + 0.02 * noise.normal(x)).clamp(0, 1)

    def surrogate(self, x, noise):
        return x * (1 + self.sigma * noise.normal(x))


@pytest.mark.parametrize(("most", "passed"), [(1, False), (40, True)])
def test_an_unbounded_attack_runs_again_with_the_most_copies(most, passed):
    context = context_of(Trembles(), n=16)
    context.budget = replace(context.budget, eot=1, max_eot=most)
    result = gradients.UNBOUNDED_CHECK.run(Session(context))
    assert result.passed == passed, result.measured


class RekeyedContext(Context):
    """A stochastic pipeline whose share of right draws depends on the name of the noise."""

    stochastic = True
    budget = budget_for("standard", True, IMAGES)

    def __init__(self, shares):
        self.shares, self.x = shares, torch.zeros(IMAGES, 1, 1, 1)

    def classify_draws(self, x, rows, stream, draws):
        generator = np.random.default_rng(list(stream.encode()))
        return (generator.random((len(rows), draws)) < self.shares[stream]).astype(np.uint8)


@pytest.mark.parametrize(
    ("first", "second", "passed"),
    [(0.5, 0.5, True), (0.6, 0.5, True), (0.6, 0.4, True), (0.6, 0.6, False), (0.4, 0.4, False)],
    ids=["equal", "once", "both ways", "twice higher", "twice lower"],
)
def test_other_noise_must_differ_twice_and_alike(first, second, passed):
    shares = {"score": 0.5, "re-keyed": first, "re-keyed again": second}
    context = RekeyedContext(shares)
    declared = SimpleNamespace(best=SimpleNamespace(x_adv=context.x))
    session = SimpleNamespace(context=context, declared=declared)
    (check,) = [check for check in state.CHECKS if check.name == "re-keyed noise"]
    result = check.run(session)
    assert result.passed == passed, result.measured
