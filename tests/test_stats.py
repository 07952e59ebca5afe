"""Intervals and tests against scipy, published examples, and simulations of their coverage."""

import tracemalloc
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import binom, binomtest, permutation_test

from defend.stats import (
    bootstrap,
    compare,
    difference,
    holm,
    interval,
    mcnemar,
    permutation,
    wilson,
)


def paired_outcomes(both, only_a, only_b, neither):
    """Return outcomes a, b with these four counts."""
    a = np.repeat([1, 1, 0, 0], [both, only_a, only_b, neither])
    b = np.repeat([1, 0, 1, 0], [both, only_a, only_b, neither])
    return a, b


@pytest.mark.parametrize(
    ("right", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (0, 1), (173, 200), (9999, 10_000)]
)
def test_wilson_is_scipys(right, n):
    reference = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right, n) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_wilson_is_closed_at_the_ends():
    assert wilson(0, 50)[0] == 0.0
    assert wilson(50, 50)[1] == 1.0
    assert wilson(0, 50)[1] > 0.05
    assert wilson(50, 50)[0] < 0.95


@pytest.mark.parametrize(("right", "n"), [(-1, 10), (11, 10), (0, 0)])
def test_wilson_refuses(right, n):
    with pytest.raises(ValueError, match="0 <= right <= n"):
        wilson(right, n)


@pytest.mark.parametrize("p", [0.03, 0.2, 0.5, 0.9])
def test_wilson_covers(p):
    """Compute the coverage exactly: sum the probabilities of the outcomes whose interval
    holds p.
    """
    n = 200
    coverage = 0.0
    for k in range(n + 1):
        low, high = wilson(k, n)
        if low <= p <= high:
            coverage += binom.pmf(k, n, p)
    assert 0.93 < coverage < 0.98


@pytest.mark.parametrize(
    ("kinds", "shares"),
    [
        ([0.05, 0.4, 0.9], [0.3, 0.3, 0.4]),
        ([0.0, 0.5], [0.98, 0.02]),
        ([1.0, 0.6], [0.97, 0.03]),
        ([0.0, 1.0], [0.98, 0.02]),
    ],
)
def test_bootstrap_covers(kinds, shares):
    """Check that 95 % of 400 intervals hold the true mean, for images of several kinds, 20 draws
    each.

    The share may be up to 3 standard errors below 95 %, and near 0 and 1 it is somewhat higher.
    """
    rng, runs = np.random.default_rng(0), 400
    truth, hits = np.dot(kinds, shares), 0
    for run in range(runs):
        outcomes = rng.binomial(20, rng.choice(kinds, 100, p=shares)) / 20
        low, high = bootstrap(outcomes, seed=run, resamples=1000)
        hits += low <= truth <= high
    assert 0.95 - 3 * np.sqrt(0.95 * 0.05 / runs) < hits / runs <= 0.995


def test_bootstrap_is_resampling_of_images():
    """Compare the multinomial over distinct shares with indices drawn one by one, two
    images added.
    """
    rng = np.random.default_rng(1)
    shares = rng.binomial(20, rng.uniform(size=300)) / 20
    means = np.append(shares, (0, 1))[rng.integers(0, 302, (20_000, 302))].mean(1)
    assert bootstrap(shares, seed=3, resamples=20_000) == pytest.approx(
        np.quantile(means, [0.025, 0.975]), abs=0.002
    )


def test_bootstrap_on_one_draw_agrees_with_wilson_away_from_the_ends():
    outcomes = np.repeat([1, 0], [520, 480])
    assert bootstrap(outcomes) == pytest.approx(wilson(520, 1000), abs=0.003)


@pytest.mark.parametrize("value", [0, 1])
def test_agreement_of_all_images_is_not_certainty(value):
    """Check that the interval is about as wide as Wilson's."""
    low, high = bootstrap(np.full(100, value))
    assert (low, high)[value] == value
    assert 0.6 < (high - low) / np.ptp(wilson(100 * value, 100)) < 1.4
    assert np.ptp(difference([0.5] * 100, [0.5] * 100)[1:]) > 0.01


def test_bootstrap_repeats_itself_and_its_seed_matters():
    shares = np.random.default_rng(0).uniform(size=50)
    assert bootstrap(shares, seed=5) == bootstrap(shares, seed=5) != bootstrap(shares, seed=6)


def test_interval_chooses_by_the_number_of_draws():
    one = np.repeat([[1], [0]], [70, 30], axis=0)
    many = np.random.default_rng(0).integers(0, 2, (100, 20))
    assert interval(one) == wilson(70, 100)
    assert interval(many, seed=2) == bootstrap(many.mean(1), seed=2)
    assert np.ptp(interval(many)) < np.ptp(wilson(50, 100))  # draws within an image average out


@pytest.mark.parametrize("counts", [(50, 3, 12, 5), (0, 1, 0, 0), (10, 0, 9, 0), (100, 40, 20, 40)])
def test_mcnemar_is_the_binomial_test_of_discordant_pairs(counts):
    a, b = paired_outcomes(*counts)
    assert mcnemar(a, b) == pytest.approx(binomtest(counts[1], counts[1] + counts[2]).pvalue)
    assert mcnemar(a, b) == mcnemar(b, a)


def test_one_sided_mcnemar_looks_at_one_direction():
    """Nine images of one kind suffice two-sided at 0.05 / 10, and eight one-sided."""
    for k, test in ((8, {"alternative": "greater"}), (9, {})):
        a, b = paired_outcomes(20, k, 0, 20)
        fewer = paired_outcomes(20, k - 1, 0, 20)
        assert mcnemar(a, b, **test) < 0.005 < mcnemar(*fewer, **test)
    assert mcnemar(a, b, alternative="greater") == 2.0**-9
    assert mcnemar(b, a, alternative="greater") == 1.0


def test_one_sided_permutation_of_binary_outcomes_is_mcnemar():
    a, b = paired_outcomes(20, 11, 4, 20)
    for pair in ((a, b), (b, a)):
        expected = mcnemar(*pair, alternative="greater")
        p = permutation(*pair, resamples=200_000, alternative="greater")
        assert p == pytest.approx(expected, abs=0.003)


def test_mcnemar_without_discordant_pairs():
    assert mcnemar(*paired_outcomes(5, 0, 0, 5)) == 1.0


def test_mcnemar_refuses_shares():
    with pytest.raises(ValueError, match="permutation"):
        mcnemar([0.5, 1.0], [1.0, 0.0])


@pytest.mark.parametrize("shift", [0.0, 0.04, 0.12])
def test_permutation_is_scipys(shift):
    rng = np.random.default_rng(7)
    base = rng.uniform(size=80)
    a = rng.binomial(20, np.clip(base + shift, 0, 1)) / 20
    b = rng.binomial(20, np.clip(base, 0, 1)) / 20
    reference = permutation_test(
        (a, b),
        lambda x, y: np.mean(x - y),
        permutation_type="samples",
        n_resamples=20_000,
        rng=np.random.default_rng(0),
    )
    assert permutation(a, b, resamples=20_000) == pytest.approx(reference.pvalue, abs=0.015)


def test_permutation_of_binary_outcomes_is_mcnemar():
    a, b = paired_outcomes(50, 4, 14, 32)
    assert permutation(a, b, resamples=200_000) == pytest.approx(mcnemar(a, b), abs=0.003)


def test_permutation_keeps_its_level():
    """Check that, without a difference, 5 % of 400 tests are below .05, within 3 standard
    errors.
    """
    rng, runs = np.random.default_rng(2), 400
    draws = rng.binomial(10, np.repeat(rng.uniform(size=(runs, 60, 1)), 2, axis=2)) / 10
    p_values = [permutation(d[:, 0], d[:, 1], seed=i, resamples=999) for i, d in enumerate(draws)]
    assert abs(np.mean(np.array(p_values) < 0.05) - 0.05) < 3 * np.sqrt(0.05 * 0.95 / runs)


def test_permutation_of_many_distinct_differences_is_the_z_test():
    """Sums of n random signs are normal with the variance of the squared differences."""
    differences = np.random.default_rng(4).normal(0.05, 1, 2000)
    z = differences.sum() / np.sqrt((differences**2).sum())
    expected = 2 * NormalDist().cdf(-abs(z))
    assert 0.005 < expected < 0.5
    assert permutation(differences, np.zeros(2000)) == pytest.approx(expected, abs=0.015)


def test_permutation_of_decibels_holds_few_resamples_in_memory():
    """All signs of 10,000 resamples at once would be 160 MB."""
    differences = np.random.default_rng(5).normal(size=2000)
    tracemalloc.start()
    permutation(differences, np.zeros(2000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def test_permutation_of_equals():
    assert permutation([0.5, 0.25], [0.5, 0.25]) == 1.0


def test_holm_by_hand():
    """Check .01 x 4 = .04; .02 x 3 = .06; .03 x 2 = .06; .04 x 1 = .04, raised to .06."""
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_difference_is_newcombes_published_example():
    """Check that 36, 12, 2, 0 gives .2000 and .0569 to .3404 by method 10.

    Source: Newcombe, Statist. Med. 17 (1998) 2635.
    """
    assert difference(*paired_outcomes(36, 12, 2, 0)) == pytest.approx(
        (0.2, 0.0569, 0.3404), abs=5e-5
    )


@pytest.mark.parametrize(
    "cells", [(0.5, 0.2, 0.1, 0.2), (0.05, 0.02, 0.02, 0.91), (0.3, 0.3, 0.3, 0.1)]
)
def test_difference_of_proportions_covers(cells):
    rng, runs = np.random.default_rng(3), 600
    truth = cells[1] - cells[2]
    hits = 0.0
    for counts in rng.multinomial(200, cells, runs):
        _, low, high = difference(*paired_outcomes(*counts))
        hits += (low <= truth <= high) / runs
    assert 0.95 - 3 * np.sqrt(0.95 * 0.05 / runs) < hits < 0.995


def test_difference_of_shares_covers():
    rng, runs = np.random.default_rng(4), 400
    p = rng.uniform(0.2, 0.7, (runs, 120))
    a, b = rng.binomial(20, p + 0.1) / 20, rng.binomial(20, p) / 20
    hits = 0
    for first, second in zip(a, b):
        _, low, high = difference(first, second, resamples=1000)
        hits += low <= 0.1 <= high
    assert abs(hits / runs - 0.95) < 3 * np.sqrt(0.95 * 0.05 / runs)


@pytest.mark.parametrize(("n", "p"), [(50, 0.02), (50, 0.5), (200, 0.3)])
def test_comparing_shares_with_binary_outcomes_keeps_its_level(n, p):
    """Compare equally good pipelines: one is right or wrong, the other right in k of 20 draws.

    Flipped signs alone called the latter better in 40 % of runs at n = 50, p = .02.
    """
    rng, runs = np.random.default_rng(5), 150
    right = (rng.random((runs, n, 1)) < p).astype(float)
    draws = (rng.random((runs, n, 20)) < rng.beta(1, 1 / p - 1, (runs, n, 1))).astype(float)
    comparisons = [compare(a, b) for a, b in zip(right, draws)]
    most = 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
    assert np.mean([c.p < 0.05 for c in comparisons]) < most
    assert np.mean([not c.low <= 0 <= c.high for c in comparisons]) < most


def test_a_p_value_is_not_significant_where_the_interval_holds_zero():
    rng = np.random.default_rng(6)
    for shift in (0.0, 0.1, 0.2, 0.3):
        a = rng.binomial(1, 0.5, (60, 1))
        b = rng.binomial(20, np.clip(0.5 - shift, 0, 1), 60)[:, None] > np.arange(20)
        c = compare(a, b)
        assert c.p > 0.05 - 1e-3 or not c.low <= 0 <= c.high


def test_pairing_is_used():
    """Check that a difference is sharper if both are right on the same images than on others."""
    a, paired = paired_outcomes(90, 10, 0, 100)
    unpaired = np.roll(paired, 100)
    assert difference(a, paired)[0] == pytest.approx(difference(a, unpaired)[0])
    assert np.ptp(difference(a, paired)[1:]) < np.ptp(difference(a, unpaired)[1:]) / 2
    assert mcnemar(a, paired) < 0.01 < mcnemar(a, unpaired)


def test_compare_chooses_the_test():
    rng = np.random.default_rng(5)
    one_draw, draws = rng.integers(0, 2, (50, 1)), rng.integers(0, 2, (50, 20))
    assert compare(one_draw, 1 - one_draw).test == "McNemar, exact"
    assert compare(one_draw, draws).test == compare(draws, draws).test == "paired permutation"
    comparison = compare(draws, draws)
    assert (comparison.difference, comparison.p) == (0.0, 1.0)
    assert comparison.low <= 0 <= comparison.high


@pytest.mark.parametrize("bad", [[], [0.5, float("nan")], [[1.0]]])
def test_bad_input_is_named(bad):
    with pytest.raises(ValueError, match="expected one finite number for each image"):
        bootstrap(bad)


def test_pairs_have_the_same_images():
    with pytest.raises(ValueError, match="the same images on both sides, got 2 and 1"):
        difference([1, 0], [1])
