"""How sure a number is, over images alone: intervals of one accuracy, comparisons of two, and many comparisons at once.

An image's outcome is its share of right draws: 0 or 1 where the purifier is deterministic, k / K where it is stochastic. An attack
that was too weak shows in none of these intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
Floats = NDArray[np.float64]
Limits = Callable[[float], tuple[float, float]]


def wilson(right: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Score interval of a proportion: Wilson, JASA 22 (1927) 209; Brown, Cai, DasGupta, Statist. Sci. 16 (2001) eq. (4).

    right: number of right images of n; a sum of shares is taken as well, and the interval is then too wide, never too narrow:
    shares of mean p vary by at most p (1 - p). Closed at 0 of n and n of n. Raises ValueError unless 0 <= right <= n, n >= 1.
    """
    if n < 1 or not 0 <= right <= n:
        raise ValueError(
            f"wilson: expected 0 <= right <= n and n >= 1, got right = {right}, n = {n}"
        )
    z, p = _z(level), right / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)))
    return (
        0.0 if right == 0 else max(0.0, centre - half),
        1.0 if right == n else min(1.0, centre + half),
    )


def bootstrap(
    per_image: ArrayLike, seed: int = 0, resamples: int = 10_000, level: float = LEVEL
) -> tuple[float, float]:
    """Percentile interval of the mean over images: Efron, Tibshirani, "An Introduction to the Bootstrap" (1993) section 13.3.

    per_image (n,): shares in [0, 1]. Before resampling, one image always right and one always wrong are added, as Agresti and
    Coull (Amer. Statist. 52 (1998) 119) add successes and failures: without them, images that agree show no spread, and 95 %
    intervals near 0 and 1 cover 64 to 90 % (n = 100, 20 draws: simulated; 97 % with them).
    """
    return _bootstrapped(_finite(per_image), seed, resamples)(level)


def interval(outcomes: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """Of the accuracy over outcomes (n, K) of 0 and 1: Wilson for one draw of each image, bootstrap over images for more."""
    score = np.asarray(outcomes, np.float64)
    return (
        wilson(float(score.sum()), len(score))
        if score.shape[1] == 1
        else bootstrap(score.mean(1), seed)
    )


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """Exact two-sided p-value that two deterministic pipelines are right equally often: McNemar, Psychometrika 12 (1947) 153.

    a, b (n,): right or not on the same images. Only images on which they differ count; 1.0 where there are none.
    """
    first, second = _pair(a, b)
    if not np.isin(np.concatenate([first, second]), (0.0, 1.0)).all():
        raise ValueError(
            "mcnemar: expected outcomes of 0 and 1; shares of draws are compared by `permutation`"
        )
    only_a, only_b = int((first > second).sum()), int((second > first).sum())
    if only_a + only_b == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b).pvalue)


def permutation(a: ArrayLike, b: ArrayLike, seed: int = 0, resamples: int = 10_000) -> float:
    """Two-sided p-value that per-image means (n,) of two pipelines have the same mean, by flipping the signs of the differences:
    Fisher, "The Design of Experiments" (1935) section 21; counted as (1 + hits) / (1 + resamples), Phipson, Smyth, SAGMB 9 (2010) 39.

    Differences of equal size are exchangeable: of c of them, Binomial(c, 1/2) keep their sign.
    """
    first, second = _pair(a, b)
    d = np.round(first - second, 12)  # equal shares, whatever their rounding
    sizes, counts = np.unique(np.abs(d[d != 0]), return_counts=True)
    if not len(sizes):
        return 1.0
    kept = np.random.default_rng(seed).binomial(counts, 0.5, (resamples, len(counts)))
    sums = (2 * kept - counts) @ sizes
    hits = (np.abs(sums) >= abs(d.sum()) - 1e-9).sum()  # 1e-9: a tie counts against significance
    return float((1 + hits) / (1 + resamples))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given: Holm, Scand. J. Statist. 6 (1979) 65. Below alpha: significant among all of them."""
    order = np.argsort(p, kind="stable")
    scaled = np.asarray(p, np.float64)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(v) for v in adjusted]


def difference(
    a: ArrayLike, b: ArrayLike, seed: int = 0, resamples: int = 10_000, level: float = LEVEL
) -> tuple[float, float, float]:
    """mean(a) - mean(b) over the same images (n,), and its interval (low, high).

    The two accuracies' own limits joined through their correlation. Outcomes of 0 and 1: Newcombe, Statist. Med. 17 (1998) 2635,
    method 10. Shares of draws: the same of bootstrapped limits, Zou, Donner, Statist. Med. 27 (2008) 1693. (A bootstrap of the
    differences takes none right of 50 for certain: beside a stochastic purifier that is as good, it holds the truth in 60 %, where
    2 % are right; this one in 99 %: tests/test_stats.py simulates it.)
    """
    first, second = _pair(a, b)
    return (float((first - second).mean()), *_between(first, second, seed, resamples)(level))


@dataclass(frozen=True)
class Comparison:
    """Two defenses on the same images under the same attacks."""

    difference: float  # a - b, as shares
    low: float
    high: float
    p: float  # of this pair alone; `holm` over all pairs that are shown
    test: str


def compare(a: ArrayLike, b: ArrayLike, seed: int = 0) -> Comparison:
    """Outcomes (n, K) of two defenses, K may differ: McNemar where both are deterministic, the paired permutation test elsewhere, and
    then never surer than the interval: signs may be flipped where both outcomes are distributed alike, not where one is 0 or 1 and the
    other always a twentieth."""
    one, two = np.asarray(a, np.float64), np.asarray(b, np.float64)
    first, second = _pair(one.mean(1), two.mean(1))
    exact, between = one.shape[1] == two.shape[1] == 1, _between(first, second, seed)
    p = (
        mcnemar(first, second)
        if exact
        else max(permutation(first, second, seed), _excludes_zero(between))
    )
    return Comparison(
        float((first - second).mean()),
        *between(LEVEL),
        p,
        "McNemar, exact" if exact else "paired permutation",
    )


def _between(a: Floats, b: Floats, seed: int, resamples: int = 10_000) -> Limits:
    """Level -> limits of mean(a) - mean(b)."""
    of_a, of_b, phi = (
        _limits(a, seed, resamples),
        _limits(b, seed + 1, resamples),
        _correlation(a, b),
    )
    p1, p2 = float(a.mean()), float(b.mean())

    def limits(level: float) -> tuple[float, float]:
        (l1, u1), (l2, u2) = of_a(level), of_b(level)
        return max(-1.0, p1 - p2 - _joined(p1 - l1, u2 - p2, phi)), min(
            1.0, p1 - p2 + _joined(u1 - p1, p2 - l2, phi)
        )

    return limits


def _limits(values: Floats, seed: int, resamples: int) -> Limits:
    """Level -> limits of one accuracy, as `interval` gives them."""
    if _right_or_wrong(values):
        return lambda level: wilson(float(values.sum()), len(values), level)
    return _bootstrapped(values, seed, resamples)


def _bootstrapped(values: Floats, seed: int, resamples: int) -> Limits:
    means = _resampled_means(np.append(values, (0.0, 1.0)), seed, resamples)
    return lambda level: tuple(map(float, np.quantile(means, _tails(level))))  # type: ignore[return-value]


def _excludes_zero(limits: Limits, least: float = 1e-4) -> float:
    """The p-value of an interval: 1 - the highest level at which it leaves out 0, found by halving; no smaller than `least`."""
    inside, outside = least, 1.0  # as p: a wide interval holds 0, a point does not
    if limits(1 - least)[0] > 0 or limits(1 - least)[1] < 0:
        return least
    while outside - inside > 1e-4:
        p = (inside + outside) / 2
        low, high = limits(1 - p)
        inside, outside = (p, outside) if low <= 0 <= high else (inside, p)
    return outside


def _right_or_wrong(*outcomes: Floats) -> bool:
    """Is each image 0 or 1?"""
    return all(bool(np.isin(values, (0.0, 1.0)).all()) for values in outcomes)


def _correlation(a: Floats, b: Floats) -> float:
    """0 where one side does not vary. Of outcomes of 0 and 1 phi, continuity-corrected as method 10 asks."""
    if min(np.ptp(a), np.ptp(b)) <= 1e-12:
        return 0.0
    r = float(np.corrcoef(a, b)[0, 1])
    if r <= 0 or not _right_or_wrong(a, b):
        return r
    return max(
        r - 1 / (2 * len(a) * float(a.std() * b.std())), 0.0
    )  # Newcombe's n / 2 off the cross product of the four counts


def _joined(x: float, y: float, phi: float) -> float:
    return float(np.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y)))  # max: rounding


def _resampled_means(values: Floats, seed: int, resamples: int) -> Floats:
    """Images of equal value are exchangeable, so a resample is one multinomial draw over the few distinct values: time and memory
    do not grow with n."""
    distinct, counts = np.unique(
        np.round(values, 12), return_counts=True
    )  # equal shares, whatever their rounding
    drawn = np.random.default_rng(seed).multinomial(
        len(values), counts / len(values), size=resamples
    )
    return np.asarray(drawn @ distinct / len(values), np.float64)


def _z(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)


def _tails(level: float) -> list[float]:
    return [(1 - level) / 2, (1 + level) / 2]


def _finite(values: ArrayLike) -> Floats:
    out = np.asarray(values, np.float64)
    if out.ndim != 1 or not len(out) or not np.isfinite(out).all():
        raise ValueError(
            f"expected one finite number for each image, shape (n,) with n >= 1, got shape {out.shape}"
        )
    return out


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    first, second = _finite(a), _finite(b)
    if len(first) != len(second):
        raise ValueError(
            f"a paired comparison needs the same images on both sides, got {len(first)} and {len(second)}"
        )
    return first, second
