"""The worst case over attempts on a stochastic purifier: no attempt wins by chance alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from defend.auditing.budget import budget_for
from defend.auditing.comparison import AttackedImages, _attack_part, worst_over_alternatives
from defend.auditing.context import Context

IMAGES = 400


class DrawsContext:
    """A stochastic pipeline on which every attempt leaves each image a probability.

    The images of attempt k are all of value k: probabilities (attempts, images).
    """

    stochastic = True
    budget = budget_for("standard", True, IMAGES)

    def __init__(self, probabilities):
        self.probabilities = probabilities
        self.x = torch.zeros(probabilities.shape[1], 1, 1, 1)

    def classify_draws(self, x, rows, stream, draws):
        attempt = int(x[0])
        generator = np.random.default_rng([attempt, stream == "score"])
        chance = generator.random((len(rows), draws))
        return (chance < self.probabilities[attempt][rows.numpy()][:, None]).astype(np.uint8)


@pytest.mark.parametrize(("shares", "is_small"), [((0.5, 0.6), False), ((0.6, 0.5), True)])
def test_only_an_attack_that_leaves_less_is_significant(shares, is_small):
    """One that leaves less robs no other of its power, and one that leaves more is nothing."""
    generator = np.random.default_rng(1)
    baseline, attacked = (generator.binomial(20, share, IMAGES) / 20 for share in shares)
    p = {
        kind: Context.p_value_of_attack(SimpleNamespace(stochastic=kind), *pair)
        for kind, pair in {
            True: (attacked, baseline),
            False: (attacked > 0.55, baseline > 0.55),
        }.items()
    }
    assert all((value < 0.001) == is_small for value in p.values()), p
    assert all(value > 0.9 for value in p.values()) or is_small


def attempt_number(k):
    return lambda rows: torch.full((len(rows), 1, 1, 1), float(k))


@pytest.mark.parametrize("extra", [0, 4, 10])
@pytest.mark.parametrize("null", [0.75, 0.95])
def test_more_attempts_that_do_nothing_move_no_worst_case(extra, null):
    """The minimum of several noisy shares is low by itself, and would prefer a lucky attempt.

    With that rule, an accuracy of 0.5 became 0.55 to 0.6.
    """
    clean = np.full(IMAGES, 0.95)
    attacked = np.where(np.arange(IMAGES) < 200, 0.3, 0.65)
    context = DrawsContext(np.stack([clean, attacked, *[np.full(IMAGES, null)] * extra]))
    best = AttackedImages(context, torch.arange(IMAGES))
    for k in range(1, 2 + extra):
        best.run(attempt_number(k))
    assert abs(best.accuracy - attacked.mean()) < 0.02
    assert (best.x_adv == 1).double().mean() > 0.9


@pytest.mark.parametrize("null", [0, 6])
@pytest.mark.parametrize(
    ("shares", "where", "accuracy"),
    [
        ((0.7, 0.3), "everywhere", 0.3),
        ((0.7, 0.3), "second half", 0.3),
        ((0.3, 0.7), "everywhere", 0.5),  # no stronger: the minimum of estimates would leave .44
        ((0.95, 0.95), "everywhere", 0.5),
    ],
)
def test_an_alternative_counts_where_it_breaks_more_and_nowhere_else(shares, where, accuracy, null):
    """The declared attack leaves .3 of the draws of one half of the images, and .7 of the other."""
    is_first_half = np.arange(IMAGES) < 200
    clean = np.full(IMAGES, 0.95)
    declared = np.where(is_first_half, 0.3, 0.7)
    alternative = np.where(is_first_half, *shares)
    context = DrawsContext(np.stack([clean, declared, alternative, *[clean] * null]))
    best = AttackedImages(context, torch.arange(IMAGES))
    best.run(attempt_number(1))
    attacked = ~is_first_half | (where == "everywhere")
    for k in range(2, 3 + null):
        _attack_part(best, attacked, [attempt_number(k)])
    assert abs(worst_over_alternatives(best).mean() - accuracy) < 0.02
