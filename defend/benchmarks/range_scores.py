"""Score one range of images behind each defense that asks, and check the defenses on the first.

A defense that fails a check fails all its units of the job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from defend.benchmarks.calibration import Calibrations
from defend.benchmarks.cell import Cell
from defend.benchmarks.components import Components
from defend.benchmarks.network_checks import blame_network_first, check_classified_alone
from defend.benchmarks.purifier_checks import (
    check_batch_independence,
    check_declared_deterministic,
    check_fresh_copy,
    few_rows,
    fresh_copy_agrees,
    is_quick,
    logits_agree,
)
from defend.benchmarks.scoring import Scorer, Scores
from defend.benchmarks.stopwatch import Stopwatch
from defend.noise import Noise
from defend.threat_models import Pipeline


@dataclass(frozen=True, kw_only=True)
class CleanScores:
    """Clean images behind one defense, which all units of a pipeline and a range share."""

    outcomes: dict[str, Tensor]  # as Scores has them
    details: dict[str, Tensor]
    loss: float  # summed over images
    draws_differ: bool
    images_per_second: float  # of purifying alone

    def as_scores(self) -> Scores:
        """Return the scores of an attack at eps 0, without the images and the logits."""
        nothing = torch.empty(0)
        return Scores(
            outcomes={name: values.clone() for name, values in self.outcomes.items()},
            details={name: values.clone() for name, values in self.details.items()},
            loss=self.loss,
            first_draw=nothing,
            first_logits=nothing,
            draws_differ=self.draws_differ,
            seconds=0.0,
        )


CleanCache = dict[tuple[object, ...], CleanScores]


class RangeScores:
    """One range of images x (b, c, h, w) with their references, for one job."""

    def __init__(
        self,
        components: Components,
        calibrations: Calibrations,
        clean_cache: CleanCache,
        x: Tensor,
        reference: Tensor,
        noise: Noise,
        start: int,
    ) -> None:
        self._components, self._clean_cache = components, clean_cache
        self._calibrations = calibrations
        self._x, self._reference, self._noise, self._start = x, reference, noise, start
        self._clean_outputs: dict[Pipeline, dict[int, Tensor]] = {}  # as a Scorer has them
        # Defense -> why it failed its check, None if it passed. Only on the first range of a run.
        self._checked: dict[Pipeline, Exception | None] = {}

    def score(self, cell: Cell, batches: Sequence[Tensor]) -> list[Scores | Exception]:
        """Return the scores of adversarial images at several eps, or why there are none.

        The first batch of a defense must be that of the largest eps: on it the defense is checked.
        """
        if not batches:
            return []
        if self._start == 0 and cell.scored not in self._checked:
            return [self._score_and_check(cell, batches[0]), *self.score(cell, batches[1:])]
        error = self._checked.get(cell.scored)
        if error is not None:
            return [error] * len(batches)
        try:
            if cell.task.compares_clean_output:
                self.clean(cell)  # its outputs need not be computed again
            stopwatch = Stopwatch(self._components.device)
            return list(self._scorer(cell).score(batches, stopwatch))
        except Exception as e:  # a purifier may raise anything, perhaps for one eps alone
            if len(batches) == 1:
                return [e]
            return [self.score(cell, [batch])[0] for batch in batches]

    def _score_and_check(self, cell: Cell, x_adv: Tensor) -> Scores | Exception:
        """Score one batch, and check the defense on it.

        Clean images come first: a purifier that remembers them then shows it. Where scoring
        itself raises, the next batch is the one that is checked.
        """
        try:
            self.clean(cell)
            scorer = self._scorer(cell)
            scores = scorer.score([x_adv], Stopwatch(self._components.device))[0]
        except Exception as e:  # a purifier may raise anything
            return e
        error = self._checked[cell.scored] = self._check(cell, scorer, x_adv, scores)
        return scores if error is None else error

    def clean(self, cell: Cell) -> CleanScores:
        """Return the clean images' scores. Raises BrokenPurifier."""
        n = len(self._x)
        key = (self._start, n, cell.split, cell.seed, cell.scored, cell.draws, cell.task_spec)
        if key not in self._clean_cache:
            scorer, stopwatch = self._scorer(cell), Stopwatch(self._components.device)
            scores = scorer.score([self._x], stopwatch, is_clean=True)[0]
            if self._start == 0:
                quick = is_quick(n, stopwatch.images_per_second)
                self._check_deterministic(scorer, self._x, scores, quick)
                if self._components.precision == "float32":  # bfloat16 rounds otherwise in batches
                    check_classified_alone(scorer.network, scores.first_draw)
            self._clean_cache[key] = CleanScores(
                outcomes=scores.outcomes,
                details=scores.details,
                loss=scores.loss,
                draws_differ=scores.draws_differ,
                images_per_second=stopwatch.images_per_second,
            )
        return self._clean_cache[key]

    def _scorer(self, cell: Cell) -> Scorer:
        return Scorer(
            purifier=self._components.defense(cell.defense),
            network=self._components.classifier(cell.classifier).network,
            source=self._x,
            reference=self._reference,
            noise=self._noise,
            draws=cell.draws,
            task=self._calibrations.task_of(cell),
            clean_outputs=self._clean_outputs.setdefault(cell.scored, {}),
        )

    def _check(self, cell: Cell, scorer: Scorer, x_adv: Tensor, scores: Scores) -> Exception | None:
        """Return why outcomes depend on more than an image and its noise; None if they do not."""
        try:
            quick = is_quick(len(x_adv), self.clean(cell).images_per_second)
            if quick or not self._fresh_copy_agrees(cell, scorer, x_adv, scores):
                with blame_network_first(scorer.network, lambda: scores.first_draw):
                    self._check_all_images(cell, scorer, x_adv, scores)
        except Exception as e:
            return e
        return None

    def _fresh_copy_agrees(self, cell: Cell, scorer: Scorer, x_adv: Tensor, scores: Scores) -> bool:
        fresh, noise = self._components.fresh_defense(cell.defense), scorer.draw_noise("score", 0)
        noise = noise if fresh.card.stochastic else noise.fork("flags")
        rows = few_rows(_is_right(scores))
        return fresh_copy_agrees(fresh, scorer.network, x_adv, scores.first_logits, noise, rows)

    def _check_all_images(self, cell: Cell, scorer: Scorer, x_adv: Tensor, scores: Scores) -> None:
        """Raise BrokenPurifier for the first reason; a few images may only round otherwise."""
        purifier, noise = scorer.purifier, scorer.draw_noise("score", 0)
        self._check_deterministic(scorer, x_adv, scores, quick=True)
        check_fresh_copy(
            purifier,
            fresh=partial(self._components.fresh_defense, cell.defense),
            logits_of=lambda copy: scorer.logits(copy, x_adv, noise),
            logits=scores.first_logits,
        )
        if self._components.precision == "float32":  # bfloat16 rounds otherwise in batches
            check_batch_independence(purifier, x_adv, scores.first_draw, noise)

    def _check_deterministic(self, scorer: Scorer, x: Tensor, scores: Scores, quick: bool) -> None:
        """Raise BrokenPurifier if a purifier that is declared deterministic draws.

        quick: look at all images at once, and not at a few first.
        """
        if scorer.purifier.card.stochastic:
            return
        noise = scorer.draw_noise("score", 0).fork("flags")
        if quick or not self._few_agree(scorer, x, scores, noise):
            logits = scorer.logits(scorer.purifier, x, noise)
            with blame_network_first(scorer.network, lambda: scores.first_draw):
                check_declared_deterministic(scorer.purifier, scores.first_logits, logits)

    @staticmethod
    def _few_agree(scorer: Scorer, x: Tensor, scores: Scores, noise: Noise) -> bool:
        """Return True if a few images have the same logits on this noise as when scored."""
        rows = few_rows(_is_right(scores)).to(x.device)
        logits = scorer.logits(scorer.purifier, x[rows], noise.take(rows))
        return logits_agree(scores.first_logits[rows], logits)


def _is_right(scores: Scores) -> Tensor:
    """Return which images (b,) count as right on some draw; all, if the score is no share."""
    return scores.outcomes["score"].bool().any(1)
