"""The worst case of each image over several candidates.

Of a stochastic purifier the candidates share their draws wholly, in part or not at all. An image
is right under an attack if a margin of its own, plus noise of sd 1, is above zero; `shared` of the
noise's variance is common to all attacks, so that the truth is known. docs/results/shared_draws.py
prints the numbers of docs/adr/0004 from the same simulation.
"""

import numpy as np
import pytest
from scipy.special import ndtr

from defend.results.candidates import distinct_candidates, worst_outcomes
from defend.results.outcomes import Outcomes

N, ATTACKS = 1000, 9


def bits(*rows):
    return np.array(rows, np.uint8)


def stochastic(score, select, name="x", clean_score=1, clean_select=1):
    score, select = np.array(score, np.uint8), np.array(select, np.uint8)
    return Outcomes(
        score=score,
        select=select,
        clean_score=np.full_like(score, clean_score),
        clean_select=np.full_like(select, clean_select),
        x_adv=(name,),
    )


def sample(rng, p, count):
    """Return `count` draws of each image, right with probability p (n, 1)."""
    return (rng.uniform(size=(len(p), count)) < p).astype(np.uint8)


# A few images.


def test_worst_of_deterministic_is_right_only_where_right_under_all():
    clean = bits([1], [1], [1], [0])
    a = Outcomes(score=bits([1], [0], [1], [0]), clean_score=clean, x_adv=("a",))
    b = Outcomes(score=bits([1], [1], [0], [0]), clean_score=clean, x_adv=("b",))
    assert worst_outcomes([a, b])[:, 0].tolist() == [1, 0, 0, 0]


def test_worst_of_stochastic_is_chosen_on_select_and_read_off_on_score():
    """On image 0, b is worse on select although a is worse on score; on image 1 the reverse."""
    a = stochastic(score=[[0, 0], [1, 0]], select=[[1, 1, 1], [0, 0, 1]], name="a")
    b = stochastic(score=[[1, 0], [0, 0]], select=[[0, 0, 1], [1, 1, 1]], name="b")
    assert worst_outcomes([a, b]).tolist() == [[1, 0], [1, 0]]
    assert worst_outcomes([b, a]).tolist() == [[1, 0], [1, 0]]


def test_the_clean_image_is_a_candidate():
    """If the attack helped the purifier, the attacker hands in the clean image."""
    helped = stochastic(score=[[1, 1]], select=[[1, 1, 1]], clean_score=0, clean_select=0)
    assert worst_outcomes([helped]).tolist() == [[0, 0]]


def test_ties_on_select_go_to_the_candidate_that_is_stronger_overall():
    weak = stochastic(score=[[1, 1]] * 3, select=[[1, 1], [0, 1], [1, 1]], name="weak")
    strong = stochastic(
        score=[[0, 1], [0, 0], [0, 0]], select=[[1, 1], [0, 0], [0, 0]], name="strong"
    )
    orders = ([weak, strong], [strong, weak])
    assert [worst_outcomes(order)[0].tolist() for order in orders] == [[0, 1], [0, 1]]


def test_identical_adversarial_images_count_once():
    a, equal, other = (stochastic([[1, 0]], [[1]], name=name) for name in ("a", "a", "b"))
    assert len(distinct_candidates([a, equal])) == 1
    assert len(distinct_candidates([a, equal, other])) == 2


def test_one_image_and_draws_that_never_differ():
    """Without noise each image goes to the attack that breaks it."""
    right = np.array([[1, 1, 1, 1], [0, 1, 1, 1], [1, 0, 1, 1]], np.uint8)[..., None]
    clean = {"clean_select": right[0].repeat(10, 1), "clean_score": right[0]}
    attacks = [
        Outcomes(select=r.repeat(10, 1), score=r, x_adv=(str(k),), **clean)
        for k, r in enumerate(right[1:])
    ]
    assert worst_outcomes(attacks)[:, 0].tolist() == [0, 0, 1, 1]
    first_image = [
        Outcomes(
            select=attack.select[:1],
            score=attack.score[:1],
            clean_select=attack.clean_select[:1],
            clean_score=attack.clean_score[:1],
            x_adv=attack.x_adv,
        )
        for attack in attacks
    ]
    assert worst_outcomes(first_image).tolist() == [[0]]


# Null attacks.


def test_reading_off_on_other_draws_keeps_null_attacks_from_winning():
    """Ten attacks that do nothing leave the worst case at the clean accuracy; the minimum over
    `score` would fall by itself.
    """
    rng = np.random.default_rng(0)
    p = rng.uniform(0.3, 0.9, (4000, 1))
    clean = {"clean_score": sample(rng, p, 20), "clean_select": sample(rng, p, 10)}
    null = []
    for i in range(10):
        score, select = sample(rng, p, 20), sample(rng, p, 10)
        null.append(Outcomes(score=score, select=select, x_adv=(str(i),), **clean))
    assert worst_outcomes(null).mean() == pytest.approx(p.mean(), abs=0.01)
    minimum = np.minimum.reduce([o.score.mean(1) for o in null]).mean()
    assert minimum < p.mean() - 0.1


@pytest.mark.parametrize("strength", [0.3, 0.8, 0.95])
@pytest.mark.parametrize("count", [1, 10])
def test_null_attacks_do_not_help_the_defender_either(strength, count):
    """On bare shares of ten draws, many images would go to a null attack that is low by chance."""
    rng = np.random.default_rng(5)
    p = rng.uniform(0.3, 0.9, (2000, 1))
    clean = {"clean_score": sample(rng, p, 20), "clean_select": sample(rng, p, 10)}

    def attack(q, name):
        score, select = sample(rng, q, 20), sample(rng, q, 10)
        return Outcomes(score=score, select=select, x_adv=(name,), **clean)

    strong, null = attack(strength * p, "attack"), [attack(p, str(i)) for i in range(count)]
    worst = worst_outcomes([strong, *null])
    assert worst.mean() == pytest.approx(strength * p.mean(), abs=0.015)


def test_two_attacks_that_break_different_images_are_both_used_among_null_attacks():
    rng = np.random.default_rng(6)
    p, is_first = rng.uniform(0.5, 0.9, (2000, 1)), rng.uniform(size=(2000, 1)) < 0.5
    clean = {"clean_score": sample(rng, p, 20), "clean_select": sample(rng, p, 10)}

    def attack(q, name):
        score, select = sample(rng, q, 20), sample(rng, q, 10)
        return Outcomes(score=score, select=select, x_adv=(name,), **clean)

    halves = [attack(np.where(is_first == half, 0.1, p), str(half)) for half in (True, False)]
    null = [attack(p, f"null{i}") for i in range(10)]
    assert worst_outcomes([*halves, *null]).mean() == pytest.approx(0.1, abs=0.02)


# Draws that are shared.


def margins(rng, spread, attacks=ATTACKS, null=0, n=N):
    """Return margins (1 + attacks + null, n), those of the clean image first.

    spread: the sd, over images, by which attacks differ.
    """
    image = rng.normal(0.15, 0.8, n)
    rows = [image + 0.5]
    rows += [image + spread * rng.normal(size=n) for _ in range(attacks)]
    rows += [image + 0.5] * null
    return np.stack(rows)


def candidates(rng, margin, shared, select=10, score=20):
    """Return the outcomes of the attacks, whose draws share so much of their variance."""

    def sample_rows(draws):
        common = rng.normal(size=(1, margin.shape[1], draws))
        own = rng.normal(size=(*margin.shape, draws))
        noise = shared**0.5 * common + (1 - shared) ** 0.5 * own
        return (margin[..., None] + noise > 0).astype(np.uint8)

    select_rows, score_rows = sample_rows(select), sample_rows(score)
    clean = {"clean_select": select_rows[0], "clean_score": score_rows[0]}
    return [
        Outcomes(select=a, score=b, x_adv=(str(k),), **clean)
        for k, (a, b) in enumerate(zip(select_rows[1:], score_rows[1:], strict=True))
    ]


def simulate(shared, spread=0.3, seed=0, draws=10, **kinds):
    """Return the worst case, the truth, and the best single attack."""
    rng = np.random.default_rng(seed)
    margin = margins(rng, spread, **kinds)
    right = ndtr(margin)
    worst = worst_outcomes(candidates(rng, margin, shared, draws)).mean()
    return worst, right.min(0).mean(), right.mean(1).min()


@pytest.mark.parametrize("spread", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("shared", [1.0, 0.5, 0.0])
def test_attacks_that_break_different_images_are_joined(shared, spread):
    """A part of what the best single attack leaves above the truth is found, and the more, the
    more of the noise is shared.
    """
    worst, truth, single = simulate(shared, spread)
    least = {1.0: 0.35, 0.5: 0.05, 0.0: 0.05}[shared]
    if spread >= 0.3:
        least += 0.3
    assert truth - 0.01 < worst < single
    assert (single - worst) / (single - truth) > least


@pytest.mark.parametrize("shared", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("attacks", [1, 2, ATTACKS])
@pytest.mark.parametrize("draws", [2, 10])
def test_null_attacks_move_nothing(shared, attacks, draws):
    """Ten that do nothing stand beside attacks that differ, and beside attacks that do not."""

    def mean(spread, null):
        kinds = {"attacks": attacks, "null": null}
        return np.mean([simulate(shared, spread, seed, draws, **kinds)[0] for seed in range(5)])

    for spread in (0.0, 0.3):
        assert mean(spread, 10) == pytest.approx(mean(spread, 0), abs=0.015)


@pytest.mark.parametrize("shared", [1.0, 0.5, 0.0])
def test_attacks_that_do_the_same_to_all_images_leave_what_each_leaves(shared):
    worst, truth, single = simulate(shared, spread=0.0)
    assert truth == single and worst == pytest.approx(truth, abs=0.015)


@pytest.mark.parametrize("attacks", [1, 2])
def test_few_candidates(attacks):
    """With the clean image and one attack, the mean over both holds half of the noise of each."""
    for shared in (1.0, 0.0):
        worst, truth, single = simulate(shared, 1.0, attacks=attacks)
        assert truth - 0.015 < worst < single


@pytest.mark.parametrize("draws", [1, 2])
def test_few_draws_give_a_number(draws):
    worst, truth, single = simulate(1.0, draws=draws)
    assert truth - 0.01 < worst < single - 0.01
