"""Error rates of a verifier: thresholds, ROC and equal error rate, from scores of attempts.

A genuine attempt is an image with the score of its own person; an impostor attempt is an image with
the score of another. An attempt is accepted if its score is above the threshold. FAR is the share
of impostor attempts that are accepted, TAR that of genuine ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CURVE_FAR = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
RESAMPLES = 200  # of the images, for the interval of the equal error rate


def threshold_at(impostors: NDArray[np.generic], far: float) -> float:
    """Return the lowest threshold at which at most a share `far` of the scores is accepted.

    It is the k-th highest score, k = floor(far m) + 1 of m. Raise ValueError without scores.
    """
    scores = np.sort(np.asarray(impostors, np.float64).ravel())[::-1]
    if not len(scores):
        raise ValueError("threshold_at: expected scores of impostors, got none")
    return float(scores[min(int(far * len(scores) + 1e-9), len(scores) - 1)])


@dataclass(frozen=True)
class Attempts:
    """Scores of genuine attempts (n, g) and of impostors (n, m), a row for each image."""

    genuine: Floats
    impostors: Floats

    def curve(self) -> tuple[tuple[float, float], ...]:
        """Return (FAR, TAR) at each FAR of CURVE_FAR: the ROC."""
        points = []
        for far in CURVE_FAR:
            threshold = threshold_at(self.impostors, far)
            points.append((far, float((self.genuine > threshold).mean())))
        return tuple(points)

    def equal_error_rate(self, seed: int) -> tuple[float, float, float]:
        """Return the rate at which FAR = 1 - TAR, with its 95 % bootstrap interval over images."""
        ranking = _Ranking(self)
        n = len(self.genuine)
        counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES)
        resampled = [ranking.equal_error_rate(weights) for weights in counts]
        low, high = np.quantile(resampled, [0.025, 0.975])
        return ranking.equal_error_rate(np.ones(n)), float(low), float(high)


class _Ranking:
    """All attempts in falling order of their scores, sorted once for many weights of the images."""

    def __init__(self, attempts: Attempts) -> None:
        scores = np.concatenate([attempts.genuine.ravel(), attempts.impostors.ravel()])
        order = np.argsort(-scores, kind="stable")
        per_image = attempts.genuine.shape[1], attempts.impostors.shape[1]
        rows = [np.repeat(np.arange(len(attempts.genuine)), count) for count in per_image]
        self.row = np.concatenate(rows)[order]
        self.is_genuine = (np.arange(len(scores)) < attempts.genuine.size)[order]
        ordered = scores[order]
        self.ends = np.append(ordered[1:] != ordered[:-1], True)  # of groups of equal scores

    def equal_error_rate(self, weights: NDArray[np.generic]) -> float:
        """Return the rate where the two errors cross, on the line between two thresholds."""
        weight = weights[self.row]
        tar = _shares(np.where(self.is_genuine, weight, 0))[self.ends]
        far = _shares(np.where(self.is_genuine, 0, weight))[self.ends]
        gap = np.append(-1.0, far - (1 - tar))  # rises from -1 to 1
        far = np.append(0.0, far)
        after = int(np.argmax(gap >= 0))
        before = after - 1
        share = -gap[before] / (gap[after] - gap[before])
        return float(far[before] + share * (far[after] - far[before]))


def _shares(weights: NDArray[np.generic]) -> Floats:
    sums = np.cumsum(np.asarray(weights, np.float64))
    return np.asarray(sums / sums[-1], np.float64)
