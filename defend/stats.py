"""Sampling error over images: intervals of one accuracy, comparisons of two, and many comparisons
at once.

An image's outcome is its share of right draws: 0 or 1 where the purifier is deterministic, k / K
where it is stochastic. None of these intervals covers an attack that was too weak.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
DECIMALS = 12  # equal shares are equal to this many decimals, whatever their rounding
FEW_SIZES = 100  # of differences between images, up to which equal ones are drawn together
SIGNS_AT_ONCE = 500  # resamples that are held in memory
Floats = NDArray[np.float64]
Alternative = Literal["two-sided", "greater"]
Limits = Callable[[float], tuple[float, float]]  # confidence level -> (low, high)


def wilson(right: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Return the score interval of a proportion, closed at 0 of n and n of n.

    Raise ValueError unless 0 <= right <= n and n >= 1.

    right: the number of right images of n. It may be a sum of shares; the interval is then too
    wide, never too narrow, because shares of mean p vary by at most p (1 - p). Source: Wilson, JASA
    22 (1927) 209; Brown, Cai, DasGupta, Statist. Sci. 16 (2001) eq. (4).
    """
    # scipy's binomtest(...).proportion_ci(method="wilson") gives the same numbers, but takes
    # integers alone, and sums of shares need the formula anyway.
    if n < 1 or not 0 <= right <= n:
        raise ValueError(
            f"wilson: expected 0 <= right <= n and n >= 1, got right = {right}, n = {n}"
        )
    z, p = _z(level), right / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)))
    low = 0.0 if right == 0 else max(0.0, centre - half)
    high = 1.0 if right == n else min(1.0, centre + half)
    return low, high


def bootstrap(
    per_image: ArrayLike, seed: int = 0, resamples: int = 10_000, level: float = LEVEL
) -> tuple[float, float]:
    """Return the percentile interval of the mean over images. per_image (n,): shares in [0, 1].

    Before resampling, one image that is always right and one that is always wrong are added, as
    Agresti and Coull (Amer. Statist. 52 (1998) 119) add successes and failures. Without them,
    images that agree show no spread, and 95 % intervals near 0 and 1 cover 64 to 90 % (n = 100, 20
    draws: simulated; 97 % with them). Source: Efron, Tibshirani, "An Introduction to the Bootstrap"
    (1993) section 13.3.
    """
    return _bootstrap_limits(_as_outcomes(per_image), seed, resamples)(level)


def interval(outcomes: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """Return the interval of the accuracy over outcomes (n, K) of 0 and 1.

    It is Wilson's for one draw of each image, and the bootstrap over images for several draws. The
    outcomes may be means over clusters (`per_cluster`): one draw of each is then a share.
    """
    scores = np.asarray(outcomes, np.float64)
    if scores.shape[1] == 1:
        return wilson(float(scores.sum()), len(scores))
    return bootstrap(scores.mean(1), seed)


def per_cluster(values: ArrayLike, clusters: ArrayLike | None) -> Floats:
    """Return the mean (c, ...) of values (n, ...) over the images of each of c clusters.

    clusters (n,): a whole number for each image, the same for images that show the same thing;
    None: each image stands alone, and the values are returned as they are. Observations of one
    cluster are not independent, so that the mean over each is one observation (Cochran, "Sampling
    Techniques", 3rd ed. (1977), chapter 9): k images that all come m times give what k images
    give. Raise ValueError unless there is one number for each image.
    """
    numbers = np.asarray(values, np.float64)
    if clusters is None:
        return numbers
    _, rows, counts = np.unique(np.asarray(clusters), return_inverse=True, return_counts=True)
    if len(rows) != len(numbers):
        raise ValueError(f"expected one cluster for each of {len(numbers)} images, got {len(rows)}")
    sums = np.zeros((len(counts), *numbers.shape[1:]))
    np.add.at(sums, rows, numbers)
    return np.asarray(sums / counts.reshape(-1, *[1] * (numbers.ndim - 1)), np.float64)


def mcnemar(a: ArrayLike, b: ArrayLike, alternative: Alternative = "two-sided") -> float:
    """Return the exact p-value that two deterministic pipelines are right equally often.

    alternative="greater": one-sided, small only where a is right more often than b.
    a, b (n,): 1 where right, else 0, on the same images. Only images on which they differ count;
    without any the p-value is 1.0. Raise ValueError for other outcomes. Source: McNemar,
    Psychometrika 12 (1947) 153.
    """
    first, second = _as_pair(a, b)
    if not _is_binary(first, second):
        raise ValueError(
            "mcnemar: expected outcomes of 0 and 1; shares of draws are compared by `permutation`"
        )
    only_a, only_b = int((first > second).sum()), int((second > first).sum())
    if only_a + only_b == 0:
        return 1.0
    from scipy.stats import binomtest  # slow to import

    return float(binomtest(only_a, only_a + only_b, alternative=alternative).pvalue)


def permutation(
    a: ArrayLike,
    b: ArrayLike,
    seed: int = 0,
    resamples: int = 10_000,
    alternative: Alternative = "two-sided",
) -> float:
    """Return the p-value that per-image means (n,) of two pipelines have the same mean.

    alternative="greater": one-sided, small only where the mean of a is above that of b.
    The signs of the differences are flipped at random: Fisher, "The Design of Experiments" (1935)
    section 21. The p-value is (1 + hits) / (1 + resamples): Phipson, Smyth, SAGMB 9 (2010) 39.
    Differences of equal size are exchangeable: of c such differences, Binomial(c, 1/2) are
    positive. Time grows with the number of distinct sizes, memory does not.
    """
    first, second = _as_pair(a, b)
    differences = np.round(first - second, DECIMALS)
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    if not len(sizes):
        return 1.0
    sums = _sums_of_random_signs(sizes, counts, np.random.default_rng(seed), resamples)
    total = differences.sum()
    if alternative == "two-sided":
        sums, total = np.abs(sums), abs(total)
    # 1e-9: a tie counts against significance, whatever its rounding.
    hits = (sums >= total - 1e-9).sum()
    return float((1 + hits) / (1 + resamples))


def _sums_of_random_signs(
    sizes: Floats, counts: NDArray[np.int64], rng: np.random.Generator, resamples: int
) -> Floats:
    """Return sums (resamples,) of all differences with signs drawn at random."""
    if len(sizes) <= FEW_SIZES:  # as of shares of draws
        positive = rng.binomial(counts, 0.5, (resamples, len(counts)))
        return np.asarray((2 * positive - counts) @ sizes)
    differences = np.repeat(sizes, counts)
    sums = []
    for start in range(0, resamples, SIGNS_AT_ONCE):
        shape = (min(SIGNS_AT_ONCE, resamples - start), len(differences))
        sums.append((2.0 * rng.integers(0, 2, shape, np.int8) - 1) @ differences)
    return np.concatenate(sums)


def holm(p: Sequence[float]) -> list[float]:
    """Return the adjusted p-values in the order of `p`; those below alpha are significant among
    all.

    Source: Holm, Scand. J. Statist. 6 (1979) 65.
    """
    order = np.argsort(p, kind="stable")
    scaled = np.asarray(p, np.float64)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(v) for v in adjusted]


def difference(
    a: ArrayLike, b: ArrayLike, seed: int = 0, resamples: int = 10_000, level: float = LEVEL
) -> tuple[float, float, float]:
    """Return mean(a) - mean(b) over the same images (n,), with its interval (low, high).

    The interval joins the limits of the two accuracies through their correlation. For outcomes of 0
    and 1 this is method 10 of Newcombe, Statist. Med. 17 (1998) 2635; for shares of draws it is the
    same with bootstrapped limits, Zou, Donner, Statist. Med. 27 (2008) 1693. A bootstrap of the
    differences would take "none right of 50" for certain: beside a stochastic purifier that is as
    good, it holds the truth in 60 % of cases, where 2 % are right; this interval does in 99 %
    (tests/test_stats.py simulates it).
    """
    first, second = _as_pair(a, b)
    low, high = _difference_limits(first, second, seed, resamples)(level)
    return float((first - second).mean()), low, high


@dataclass(frozen=True)
class Comparison:
    """The accuracies of two defenses on the same images under the same attacks, compared."""

    difference: float  # a - b, as shares
    low: float
    high: float
    p: float  # of this pair alone; `holm` adjusts it over all pairs that are shown
    test: str


def compare(a: ArrayLike, b: ArrayLike, seed: int = 0) -> Comparison:
    """Compare outcomes (n, K) of two defenses, whose numbers of draws K may differ.

    The test is McNemar's if both have one draw of 0 or 1 for each image, else the paired
    permutation test. The latter is never surer than the interval: signs may be flipped where both
    outcomes are distributed alike, but not where one is 0 or 1 and the other is always a twentieth.
    """
    outcomes_a, outcomes_b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    first, second = _as_pair(outcomes_a.mean(1), outcomes_b.mean(1))
    limits = _difference_limits(first, second, seed)
    has_one_draw = outcomes_a.shape[1] == outcomes_b.shape[1] == 1
    if has_one_draw and _is_binary(first, second):
        test, p = "McNemar, exact", mcnemar(first, second)
    else:
        test = "paired permutation"
        p = max(permutation(first, second, seed), _interval_p_value(limits))
    low, high = limits(LEVEL)
    return Comparison(float((first - second).mean()), low, high, p, test)


def mean_interval(values: ArrayLike, seed: int = 0, resamples: int = 2_000) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of real values (n,), one for each image.

    They are resampled as they are: unlike shares, decibels have no ends at which images agree. Of
    few images the interval is too narrow. Source: Efron, Tibshirani (1993) section 13.3.
    """
    means = _resampled_means(_as_outcomes(values), seed, resamples)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def compare_means(a: ArrayLike, b: ArrayLike, seed: int = 0) -> Comparison:
    """Compare real values (n, K) of two defenses on the same images, by the mean over draws.

    The interval is the bootstrap of the differences of the images, the test flips their signs
    (`permutation`).
    """
    first, second = _as_pair(np.asarray(a).mean(1), np.asarray(b).mean(1))
    low, high = mean_interval(first - second, seed)
    p = permutation(first, second, seed)
    return Comparison(float((first - second).mean()), low, high, p, "paired permutation")


def _difference_limits(a: Floats, b: Floats, seed: int, resamples: int = 10_000) -> Limits:
    """Return the function from a confidence level to the limits of mean(a) - mean(b)."""
    limits_a = _accuracy_limits(a, seed, resamples)
    limits_b = _accuracy_limits(b, seed + 1, resamples)
    phi = _correlation(a, b)
    mean_a, mean_b = float(a.mean()), float(b.mean())

    def limits(level: float) -> tuple[float, float]:
        low_a, high_a = limits_a(level)
        low_b, high_b = limits_b(level)
        below = _join(mean_a - low_a, high_b - mean_b, phi)
        above = _join(high_a - mean_a, mean_b - low_b, phi)
        return max(-1.0, mean_a - mean_b - below), min(1.0, mean_a - mean_b + above)

    return limits


def _accuracy_limits(values: Floats, seed: int, resamples: int) -> Limits:
    """Return the function from a confidence level to the limits of one accuracy, as in
    `interval`.
    """
    if _is_binary(values):
        return lambda level: wilson(float(values.sum()), len(values), level)
    return _bootstrap_limits(values, seed, resamples)


def _bootstrap_limits(values: Floats, seed: int, resamples: int) -> Limits:
    means = _resampled_means(np.append(values, (0.0, 1.0)), seed, resamples)

    def limits(level: float) -> tuple[float, float]:
        low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    return limits


def _interval_p_value(limits: Limits, least: float = 1e-4) -> float:
    """Return the p-value of an interval: 1 - the highest level at which it excludes 0, at least
    `least`.

    It is found by bisection.
    """
    # As p-values: at `includes` the interval is wide and holds 0, at `excludes` it is a point.
    includes, excludes = least, 1.0
    low, high = limits(1 - least)
    if low > 0 or high < 0:
        return least
    while excludes - includes > 1e-4:
        p = (includes + excludes) / 2
        low, high = limits(1 - p)
        if low <= 0 <= high:
            includes = p
        else:
            excludes = p
    return excludes


def _is_binary(*outcomes: Floats) -> bool:
    """Return True if every outcome is 0 or 1."""
    return all(bool(np.isin(values, (0.0, 1.0)).all()) for values in outcomes)


def _correlation(a: Floats, b: Floats) -> float:
    """Return the correlation, 0 if one side does not vary.

    For outcomes of 0 and 1 it is phi with the continuity correction that method 10 of Newcombe asks
    for.
    """
    if min(np.ptp(a), np.ptp(b)) <= 1e-12:
        return 0.0
    r = float(np.corrcoef(a, b)[0, 1])
    if r <= 0 or not _is_binary(a, b):
        return r
    # Newcombe subtracts n / 2 from the cross product of the four counts.
    return max(r - 1 / (2 * len(a) * float(a.std() * b.std())), 0.0)


def _join(x: float, y: float, phi: float) -> float:
    """Return the width of a limit of the difference from the widths x and y of its two parts."""
    return float(np.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y)))  # max: rounding


def _resampled_means(values: Floats, seed: int, resamples: int) -> Floats:
    """Return the means of bootstrap resamples.

    Images of equal value are exchangeable, so that a resample is one multinomial draw over the few
    distinct values: time and memory do not grow with n.
    """
    distinct, counts = np.unique(np.round(values, DECIMALS), return_counts=True)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(values), counts / len(values), size=resamples)
    return np.asarray(draws @ distinct / len(values), np.float64)


def _z(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)


def _as_outcomes(values: ArrayLike) -> Floats:
    """Return the outcomes as an array (n,).

    Raise ValueError for another shape or non-finite numbers.
    """
    outcomes = np.asarray(values, np.float64)
    if outcomes.ndim != 1 or not len(outcomes) or not np.isfinite(outcomes).all():
        raise ValueError(
            "expected one finite number for each image, shape (n,) with n >= 1, "
            f"got shape {outcomes.shape}"
        )
    return outcomes


def _as_pair(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    first, second = _as_outcomes(a), _as_outcomes(b)
    if len(first) != len(second):
        raise ValueError(
            f"a paired comparison needs the same images on both sides, "
            f"got {len(first)} and {len(second)}"
        )
    return first, second
