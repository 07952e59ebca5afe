"""The worst case of a stochastic purifier, where the candidates share their draws, as the bench has it, wholly, in part or not at all.

An image stands under an attack where a margin of its own, plus noise of sd 1, is above zero: `shared` of the noise's variance is the same
for all attacks, so that the truth is known. docs/results/shared_draws.py prints the numbers
of docs/adr/0004 from the same simulation.
"""

import numpy as np
import pytest
from scipy.special import ndtr

from defend.results.outcomes import Outcomes, worst

N, ATTACKS = 1000, 9


def margins(rng, unlike, attacks=ATTACKS, null=0, n=N):
    """(1 + attacks + null, n): the clean image first. unlike: the sd, over images, by which attacks differ."""
    image = rng.normal(0.15, 0.8, n)
    return np.stack(
        [
            image + 0.5,
            *(image + unlike * rng.normal(size=n) for _ in range(attacks)),
            *([image + 0.5] * null),
        ]
    )


def candidates(rng, margin, shared, select=10, score=20):
    def drawn(draws):
        common, own = (
            rng.normal(size=(1, margin.shape[1], draws)),
            rng.normal(size=(*margin.shape, draws)),
        )
        return (margin[..., None] + shared**0.5 * common + (1 - shared) ** 0.5 * own > 0).astype(
            np.uint8
        )

    chosen_by, read_off = drawn(select), drawn(score)
    clean = {"clean_select": chosen_by[0], "clean_score": read_off[0]}
    return [
        Outcomes(select=a, score=b, x_adv=(str(k),), **clean)
        for k, (a, b) in enumerate(zip(chosen_by[1:], read_off[1:], strict=True))
    ]


def found(shared, unlike=0.3, seed=0, draws=10, **kinds):
    """(the worst case, the truth, the best single attack)."""
    rng = np.random.default_rng(seed)
    margin = margins(rng, unlike, **kinds)
    right = ndtr(margin)
    return (
        worst(candidates(rng, margin, shared, draws)).mean(),
        right.min(0).mean(),
        right.mean(1).min(),
    )


@pytest.mark.parametrize("unlike", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("shared", [1.0, 0.5, 0.0])
def test_attacks_that_break_different_images_are_joined(shared, unlike):
    """Most of what the best single attack leaves above the truth is found, the more of it the more of the noise is shared."""
    value, truth, single = found(shared, unlike)
    assert truth - 0.01 < value < single
    assert (single - value) / (single - truth) > {1.0: 0.35, 0.5: 0.05, 0.0: 0.05}[shared] + (
        0.3 if unlike >= 0.3 else 0
    )


@pytest.mark.parametrize("shared", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("attacks", [1, 2, ATTACKS])
@pytest.mark.parametrize("draws", [2, 10])
def test_null_attacks_move_nothing(shared, attacks, draws):
    """Ten that do nothing, beside attacks that differ and beside those that do to all images alike."""
    for unlike in (0.0, 0.3):
        alone, beside = (
            np.mean(
                [
                    found(shared, unlike, seed, draws, attacks=attacks, null=null)[0]
                    for seed in range(5)
                ]
            )
            for null in (0, 10)
        )
        assert beside == pytest.approx(alone, abs=0.015)


@pytest.mark.parametrize("shared", [1.0, 0.5, 0.0])
def test_attacks_that_do_to_all_images_alike_leave_what_each_leaves(shared):
    value, truth, single = found(shared, unlike=0.0)
    assert truth == single and value == pytest.approx(truth, abs=0.015)


@pytest.mark.parametrize("attacks", [1, 2])
def test_few_candidates(attacks):
    """The clean image and one attack: the mean over both holds half of the noise of each."""
    for shared in (1.0, 0.0):
        value, truth, single = found(shared, 1.0, attacks=attacks)
        assert truth - 0.015 < value < single


@pytest.mark.parametrize("draws", [1, 2])
def test_few_draws_give_a_number(draws):
    value, truth, single = found(1.0, draws=draws)
    assert truth - 0.01 < value < single - 0.01


def test_one_image_and_draws_that_never_differ():
    """No noise at all: each image goes to the attack that breaks it."""
    right = np.array([[1, 1, 1, 1], [0, 1, 1, 1], [1, 0, 1, 1]], np.uint8)[..., None]
    clean = {"clean_select": right[0].repeat(10, 1), "clean_score": right[0]}
    some = [
        Outcomes(select=r.repeat(10, 1), score=r, x_adv=(str(k),), **clean)
        for k, r in enumerate(right[1:])
    ]
    assert worst(some)[:, 0].tolist() == [0, 0, 1, 1]
    one = [
        Outcomes(
            select=o.select[:1],
            score=o.score[:1],
            clean_select=o.clean_select[:1],
            clean_score=o.clean_score[:1],
            x_adv=o.x_adv,
        )
        for o in some
    ]
    assert worst(one).tolist() == [[0]]
