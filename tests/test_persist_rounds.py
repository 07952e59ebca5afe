"""The rounds of `persist`: what they try, what they average, and how they judge behind noise."""

import itertools
from dataclasses import replace

import pytest
import torch
from attack_toys import IMAGES, INSIDE, Y, curved, make_target, predict, start_noise, uphill
from masked import make_card
from persist_toys import (
    EPS,
    Constant,
    Rippled,
    Sealed,
    attack,
    labels_of,
    wrong,
)

from defend import Purifier
from defend.attacks.apgd_ascent import Ascent
from defend.attacks.gradient_paths import AveragedAscent
from defend.attacks.persistent_rounds import LABEL_LOSSES, PersistentRounds, RoundSettings
from defend.defenses.gaussian import GaussianNoise
from defend.losses import cross_entropy, negative_margin
from defend.norms import norm_of
from defend.search_moves import NEVER

# Rounds


class Recorded(PersistentRounds):
    """Rounds that say what they did."""

    def _climb(self, move, rows, loss, *ascent_type):
        self.__dict__.setdefault("climbed", []).append((move.loss, move.start))
        super()._climb(move, rows, loss, *ascent_type)

    def _update(self, move, rows, x_adv):
        seen = self.__dict__.setdefault("ends", {}).setdefault(str(move), [])
        seen.append((self.rounds, rows, x_adv))
        super()._update(move, rows, x_adv)


def rounds_of(target, y, eps, made, **fields):
    """Return the rounds of a search after so many of them."""
    settings = RoundSettings(
        norm="Linf", eps=eps, steps=6, targets=3, queries=20, rounds=20, idle_rounds=20, gain=0
    )
    settings = replace(settings, **fields)
    rounds = Recorded.begin(settings, target, INSIDE, y, start_noise(), True)
    for _ in range(made):
        rounds.run_round()
    return rounds


@pytest.mark.parametrize(("classes", "losses"), [(10, 3), (2, 2)])
def test_three_rounds_climb_each_loss_from_each_start(classes, losses):
    target = make_target(curved(classes), scored=True)
    rounds = rounds_of(target, labels_of(target), 1e-4, 3)
    label_moves = {move for move in rounds.climbed if move[0] in LABEL_LOSSES}
    assert len(label_moves) == 3 * losses


def test_no_round_repeats_what_another_has_done():
    target = make_target(curved(), Rippled(), scored=True)
    rounds = rounds_of(target, labels_of(target), 2e-3, 6, norm="L2")
    standing = set(rounds.standing().tolist())
    assert len(standing) >= 6
    for move, ends in rounds.ends.items():
        if move.startswith("square"):
            continue  # it returns its start where no square is better
        for (_, rows, x_adv), (_, later_rows, later) in itertools.combinations(ends, 2):
            for row in standing & set(rows.tolist()) & set(later_rows.tolist()):
                first = x_adv[rows.tolist().index(row)]
                assert not torch.equal(first, later[later_rows.tolist().index(row)]), move


def test_a_gradient_of_zero_gets_no_credit_for_the_best_points_of_others():
    target = make_target(curved(), Sealed(), scored=True)
    rounds = rounds_of(target, labels_of(target), 1e-3, 4)
    standing = rounds.standing()
    assert len(standing) >= 6
    best = rounds.lowest[standing].argmin(1)
    assert (best != rounds.path_names.index("declared")).all()


# Averages


def ascend(ascent_type, target, y, **fields):
    ascent = ascent_type(loss=cross_entropy, norm="Linf", eps=0.05, steps=15, **fields)
    return ascent.run(target, INSIDE, y, y, INSIDE)


def test_averages_change_nothing_for_a_linear_loss():
    def f(logits, y):
        return negative_margin(logits, y)

    for ascent_type in (Ascent, AveragedAscent):
        ascent = ascent_type(loss=f, norm="Linf", eps=0.05, steps=5)
        best = ascent.run(make_target(), INSIDE, Y, Y, INSIDE).best
        assert torch.allclose(best, INSIDE + 0.05 * uphill(Y).sign(), atol=1e-6)


def test_averages_without_a_radius_are_the_plain_ascent():
    y = predict(curved(), INSIDE)
    plain, averaged = (
        ascend(Ascent, make_target(curved()), y),
        ascend(AveragedAscent, make_target(curved()), y, radius=0.0),
    )
    assert torch.allclose(plain.best, averaged.best, atol=1e-6)
    assert torch.allclose(plain.best_loss, averaged.best_loss, atol=1e-5)


def test_averages_see_through_ripples():
    target = make_target(curved(), Rippled())
    y = labels_of(target)
    plain, averaged = ascend(Ascent, target, y), ascend(AveragedAscent, target, y)
    assert averaged.best_loss.mean() > 1.3 * plain.best_loss.mean()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_averages_ask_nearby(norm):
    class Asked(Purifier):
        card = make_card("exact")

        def purify(self, x, noise):
            points.append(x.detach())
            return x

    points = []
    target = make_target(curved(), Asked())
    y = predict(curved(), INSIDE)
    ascent = AveragedAscent(loss=cross_entropy, norm=norm, eps=0.05, steps=1)
    ascent.run(target, INSIDE, y, y, INSIDE)
    asked = torch.cat([batch for batch in points if len(batch) > IMAGES])
    asked = asked.unflatten(0, (IMAGES, -1))
    centres = asked[:, :1].expand_as(asked)
    distance = norm_of((asked - centres).flatten(0, 1), norm).unflatten(0, (IMAGES, -1))
    assert not distance[:, 0].any()
    assert (distance[:, 1:] > 0.1 * 0.25 * 0.05).all()
    assert (distance <= 0.25 * 0.05 + 1e-6).all()


# Noise


def test_noise_breaks_an_image_only_if_every_draw_is_wrong():
    """Behind strong noise half of the draws of a clean image are wrong: nothing is broken."""
    target = make_target(purifier=GaussianNoise(sigma=5.0), scored=True, eot=2)
    _, notes = attack(target, Y, 1e-3, steps=2, queries=2)
    assert notes["broken_in_round"].tolist() == [NEVER] * IMAGES


def wrong_draws(target, x_adv, y, draws=400):
    """Return the share of fresh draws in which each image is wrong."""
    fresh = target.fork("fresh")
    return torch.stack([wrong(fresh, y, x_adv) for _ in range(draws)]).double().mean(0)


@pytest.fixture(scope="module")
def noisy():
    """Return a target with noise, and points after one round and after four."""
    target = make_target(curved(), GaussianNoise(sigma=0.3), scored=True, eot=10)
    y = predict(curved(), INSIDE)
    runs = [attack(target.again(), y, EPS, rounds=n, idle_rounds=9, gain=0) for n in (1, 4)]
    return target, y, runs


def test_points_that_broke_an_image_behind_noise_are_those_that_are_returned(noisy):
    target, y, runs = noisy
    for x_adv, notes in runs:
        is_broken = notes["broken_in_round"] > 0
        assert is_broken.any()
        assert (wrong_draws(target, x_adv, y)[is_broken] >= 0.9).all()


def test_more_rounds_behind_noise_are_not_worse(noisy):
    target, y, ((one, _), (four, _)) = noisy
    assert wrong_draws(target, four, y).mean() >= wrong_draws(target, one, y).mean() - 0.005


def test_the_accuracy_after_each_round_is_that_of_fresh_draws(noisy):
    target, y, (_, (four, notes)) = noisy
    curve = notes["right_after_round"].double().mean(0)
    right = 1 - wrong_draws(target, four, y).mean().item()
    assert curve.shape == (5,)
    assert curve[-1].item() == pytest.approx(right, abs=0.06)
    assert curve[-1] < curve[0]


def test_behind_noise_every_image_gets_every_round():
    target = make_target(Constant(), GaussianNoise(sigma=0.1), scored=True, eot=2)
    y = torch.ones(IMAGES, dtype=torch.int64)
    _, notes = attack(target, y, steps=2, queries=2, gradients="declared")
    assert notes["broken_in_round"].tolist() == [1] * IMAGES
    assert notes["rounds"].tolist() == [2] * IMAGES
