"""The worst case of each image over several candidates: the cells that were attacked, and the clean
image, which an attacker can always hand in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from defend.results.outcomes import Bits, Outcomes


def distinct_candidates(candidates: Sequence[Outcomes]) -> list[Outcomes]:
    """Return the candidates, those with the same adversarial images to the bit once."""
    return list({candidate.x_adv: candidate for candidate in candidates}.values())


def worst_outcomes(candidates: Sequence[Outcomes]) -> Bits:
    """Return the worst case of each image over the candidates and the clean image: (n, K).

    Deterministic: its lowest score, so that it is right only if it is right under every candidate.
    Stochastic: it is the candidate that does worst on `select`, as far as these draws tell more
    than chance, read off on `score`, because the minimum of noisy estimates falls by itself.
    """
    distinct = distinct_candidates(candidates)
    first = distinct[0]
    score = np.stack([first.clean_score, *(c.score for c in distinct)])
    if first.select is None or first.clean_select is None:
        return np.asarray(np.minimum.reduce(score), score.dtype)
    select = np.stack([first.clean_select, *(c.select for c in distinct if c.select is not None)])
    return np.asarray(score[choose_worst(select), np.arange(score.shape[1])], score.dtype)


def choose_worst(select: Bits) -> NDArray[np.int64]:
    """Return which of m candidates does worst on each image, from draws (m, n, 10): (n,).

    Ties go to the candidate that is stronger over all images.
    """
    strongest_first = np.argsort(select.mean((1, 2)), kind="stable")
    shares = _estimate_shares(select[strongest_first])
    return np.asarray(strongest_first[shares.argmin(0)])


def _estimate_shares(select: Bits) -> NDArray[np.float64]:
    """Return the share of right draws of each image under each candidate: (m, n, 10) -> (m, n).

    The estimate is the mean of the image and of the candidate, plus that part of the residual which
    is no sampling noise: Efron, Morris, JASA 70 (1975) 311. With the bare shares, an image would
    often go to a null attack whose ten draws are low by chance, and adding null attacks would raise
    the worst case.
    """
    share = select.mean(2)
    additive = share.mean(0) + share.mean(1, keepdims=True) - share.mean()
    residual = share - additive
    noise = _sampling_variance(select)
    spread = (residual**2).sum(1) / max(1, residual.shape[1] - 1)
    trust = np.clip(1 - noise / np.maximum(spread, 1e-12), 0, 1)
    shares = additive + trust[:, None] * residual
    # Rounded, so that the order of the candidates decides nothing.
    return np.asarray(np.round(shares, 12), np.float64)


def _sampling_variance(select: Bits) -> NDArray[np.float64]:
    """Return the sampling variance of each candidate's shares, less the mean of the image: (m,).

    It is taken from draw to draw, after what the candidates have in common: they are scored with
    the same noise, and what that does to all of them is gone with the mean of the image. With noise
    of their own it would be p (1 - p) / draws, which is several times too large (docs/adr/0004).
    """
    own = select - select.mean(0)
    draws = select.shape[2]
    squares = ((own - own.mean(2, keepdims=True)) ** 2).sum(2)
    return np.asarray(squares.mean(1) / (max(1, draws - 1) * draws), np.float64)
