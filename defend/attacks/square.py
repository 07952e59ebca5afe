"""Square Attack, a random search that queries scores.

Source: Andriushchenko, Croce, Flammarion, Hein, "Square Attack: a query-efficient black-box
adversarial attack via random search", arXiv:1912.00049.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from defend.attack import Attack, AttackCard
from defend.attacks.active_set import (
    ImageStates,
    goal_margin,
    is_readable_without_waiting,
    mean_margin,
    run_active,
)
from defend.attacks.square_proposals import (
    numbers_per_step,
    propose_changing_square,
    propose_square,
    propose_window,
    start_with_bumps,
    start_with_stripes,
)
from defend.losses import whole_labels
from defend.noise import Noise
from defend.norms import per_image
from defend.target import Target

# p is halved after these queries of 10,000, as in the published code.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
BLOCK = 50  # steps whose random numbers are drawn at once


@dataclass
class SearchStates(ImageStates):
    """Hold the random search of each image.

    Points are counted from 1, the starting point. A deterministic target is queried once for each
    point, so the number of a point is that of its query. A stochastic target is queried
    2 x `target.eot` times for each point after the start: candidate and incumbent are measured.
    """

    results = ("best", "best_margin", "wrong_after")
    x: Tensor
    y: Tensor
    best: Tensor  # the incumbent
    best_margin: Tensor  # (b,): the margin of the incumbent
    wrong_after: Tensor  # (b,) int64: points until the image was first wrong, -1 for never
    noise: Noise
    # (b, BLOCK, 5 + c) in [0, 1): see `square_proposals`; arbitrary before the first step
    random: Tensor


class Square(Attack):
    """Attack by random squares: change one square at a time, and keep it if the margin falls.

    A square has the side s = sqrt(p h w)  (Algorithm 1). L-inf (Algorithm 2): each channel of the
    square becomes x + eps or x - eps; the first query has vertical stripes of these. L2 (Algorithm
    3): the budget of one window goes into another, as two bumps of opposite signs; the first query
    has a grid of them, and the perturbation has norm eps before it is clipped. p begins at p_init
    and is halved along the published schedule, stretched from 10,000 to `queries`.

    An L-inf square that would change nothing gets other signs, as in the paper's own code: with one
    channel, late in the search, this is every second square. AutoAttack's code queries it all the
    same (redraw=False); here, on a CPU, such a query counts but is not computed, since its answer
    is known.

    A deterministic target is queried once for each step. For a stochastic target, incumbent and
    candidate are measured anew at every step, over `target.eot` draws each. The note `wrong_after`
    says after how many points, the start included, an image was first wrong, -1 for never. For a
    deterministic target this is the number of queries.
    """

    card = AttackCard(paper="arXiv:1912.00049", access="scores", norms=("Linf", "L2"))
    queries: int = 5000  # points to measure, the start included: queries of a deterministic target
    p_init: float = 0.8  # the share of the pixels in the first squares
    # false: the schedule of p for 10,000 queries; AutoAttack runs its 5,000 queries like that
    rescale: bool = True
    redraw: bool = True  # L-inf; false: a square may change nothing
    targeted: bool = False  # true: y are the classes that the images are to become

    def validate(self) -> None:
        self.require(self.queries >= 1, "queries", ">= 1")
        self.require(0 < self.p_init <= 1, "p_init", "above 0 and at most 1, a share of the pixels")

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise) -> Tensor:
        start = start_with_stripes if self.norm == "Linf" else start_with_bumps
        return self.search(target, x, y, eps, noise, start(x, eps, noise))

    def search(
        self, target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise, first: Tensor
    ) -> Tensor:
        """Return what `run` returns, from the first points (b, c, h, w), which lie in the ball."""
        y = whole_labels(y)
        target = target.toward_targets() if self.targeted else target
        first_margin = mean_margin(target, first, y, self.targeted)
        states = SearchStates(
            target=target,
            broken=first_margin < 0,
            x=x,
            y=y,
            best=first,
            best_margin=first_margin,
            wrong_after=torch.where(first_margin < 0, 1, -1),
            noise=noise,
            random=x.new_empty(len(x), BLOCK, numbers_per_step(x)),
        )
        states = run_active(states, partial(self._step, eps=eps), range(1, self.queries))
        target.note("wrong_after", states.wrong_after)
        return states.best

    def _step(self, s: SearchStates, k: int, eps: float) -> None:
        """Update the states in place by step k = 1, 2, ..., which measures point k + 1."""
        candidate = self._propose(s, k, eps)
        candidate_margin, best_margin = self._measure_both(s, candidate)
        is_better = (candidate_margin < best_margin) & ~s.is_final()
        s.best = torch.where(per_image(is_better, s.x), candidate, s.best)
        s.best_margin = torch.where(is_better, candidate_margin, best_margin)
        s.broken = s.best_margin < 0
        s.wrong_after = torch.where(s.broken & (s.wrong_after < 0), k + 1, s.wrong_after)

    def _propose(self, s: SearchStates, k: int, eps: float) -> Tensor:
        """Return the candidates (b, c, h, w) of step k, which become point k + 1."""
        step_in_block = (k - 1) % BLOCK
        if step_in_block == 0:
            like = s.x.new_empty(len(s.x), BLOCK, numbers_per_step(s.x))
            s.random = s.noise.fork(f"steps from {k}").uniform(like)
        side, random = self.side(k - 1, s.x), s.random[:, step_in_block]
        if self.norm == "L2":
            return propose_window(s.x, s.best, eps, side, random)
        if self.redraw:
            return propose_changing_square(s.x, s.best, eps, side, random)
        return propose_square(s.x, s.best, eps, side, random)

    def _measure_both(self, s: SearchStates, candidate: Tensor) -> tuple[Tensor, Tensor]:
        """Return the margins of candidate and incumbent, each of shape (b,).

        The incumbent of a deterministic target is not measured again. That of a stochastic one is:
        otherwise one lucky draw would hold for ever.
        """
        if s.target.deterministic:
            return self._measure_candidate(s, candidate), s.best_margin
        candidate_margin = mean_margin(s.target, candidate, s.y, self.targeted)
        return candidate_margin, mean_margin(s.target, s.best, s.y, self.targeted)

    def _measure_candidate(self, s: SearchStates, candidate: Tensor) -> Tensor:
        """Return the margins on a deterministic target, without querying unchanged candidates."""
        if not is_readable_without_waiting(candidate):
            return goal_margin(s.target.logits(candidate), s.y, self.targeted)
        changed = (candidate != s.best).flatten(1).any(1).nonzero()[:, 0]
        if len(changed) == len(candidate):
            return goal_margin(s.target.logits(candidate), s.y, self.targeted)
        if not len(changed):
            return s.best_margin
        logits = s.target.take(changed).logits(candidate[changed])
        changed_margin = goal_margin(logits, s.y[changed], self.targeted)
        return s.best_margin.index_copy(0, changed, changed_margin)

    def side(self, step: int, x: Tensor) -> int:
        """Return the side of the square in pixels, after `step` earlier steps.

        L2 windows have an odd side of at least 3 pixels, as far as the image is large enough.
        """
        if self.rescale:
            step = step * 10_000 // self.queries
        p = self.p_init / 2 ** sum(step > halving for halving in HALVINGS)
        h, w = x.shape[-2:]
        side = round(math.sqrt(p * h * w))
        side = max(side, 1) if self.norm == "Linf" else max(side, 3) // 2 * 2 + 1
        return min(side, h, w)
