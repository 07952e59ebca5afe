"""The worst case of each image over several attacks, and attacks compared with the declared one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defend.auditing.context import Bits, Context, Floats
from defend.auditing.thresholds import THRESHOLDS
from defend.auditing.verdict import ROUNDING_ERROR, CheckResult, NotApplicable
from defend.benchmarks.scoring import SELECT_DRAWS
from defend.gradients import Backward
from defend.norms import check_adversarial
from defend.results.candidates import choose_worst

Attempt = Callable[[Tensor], Tensor]  # row indices (b,) -> adversarial images (b, c, h, w)
MIN_GAP = THRESHOLDS.gap.value - ROUNDING_ERROR  # percentage points
GRID_TOLERANCE = 1e-3  # of a grey level: float32 holds k / 255 only up to rounding


@dataclass(frozen=True)
class DrawOutcomes:
    """The draws in which images of an attempt are classified correctly by a stochastic purifier."""

    select: Bits  # (b, SELECT_DRAWS), on which the worst case is chosen
    score: Bits  # (b, score_draws), which give the accuracy
    x_adv: Tensor | None = None  # the images, if they are kept

    def inserted_into(self, base: DrawOutcomes, positions: NDArray[np.int64]) -> DrawOutcomes:
        """Return the outcomes `base` of more images, with these at the given positions."""
        select, score = base.select.copy(), base.score.copy()
        select[positions], score[positions] = self.select, self.score
        return DrawOutcomes(select, score)


def choose_worst_attempts(
    outcomes: Sequence[DrawOutcomes],
) -> tuple[NDArray[np.int64], DrawOutcomes]:
    """Return for each image the number of its worst attempt (b,), and its outcomes there.

    The attempt is chosen on the `select` draws; the accuracy is read off the `score` draws.
    """
    select = np.stack([o.select for o in outcomes])
    score = np.stack([o.score for o in outcomes])
    worst = choose_worst(select)
    images = np.arange(select.shape[1])
    return worst, DrawOutcomes(select[worst, images], score[worst, images])


class AttackedImages:
    """For each image the worst case over all attempts so far; the clean image is the first.

    Deterministic purifier: an image is correct only if it is correct under all attempts, so an
    attempt runs on the images that are still correct. Stochastic purifier: the worst attempt is
    chosen as the bench chooses it, over the same images for every attempt. The minimum of ten
    draws would be low by chance, and would prefer weak attacks.
    """

    def __init__(self, context: Context, rows: Tensor, keep_images: bool = True) -> None:
        """keep_images=False: store no image of a single attempt. x_adv of a stochastic purifier
        then stays clean.
        """
        self.context = context
        self.rows = rows
        self.keep_images = keep_images
        self.x_adv = context.x[rows].clone()  # the worst images
        self.images: list[Tensor] = []  # of each attempt; where it did not run, the worst so far
        self.outcomes: list[DrawOutcomes] = []  # of a stochastic purifier, the clean image first
        self.alternatives: list[AttackedImages] = []  # other attacks that were compared with these
        if context.stochastic:
            self._add_outcomes(self.x_adv)
        else:
            draws = context.budget.score_draws
            self.scores = context.score_rows(self.x_adv, rows, "score", draws)

    @property
    def accuracy(self) -> float:
        """Return the robust accuracy over these images."""
        return float(self.scores.mean())

    def attackable_positions(self) -> Tensor:
        """Return the positions of the images that another attempt could still worsen."""
        if self.context.stochastic:
            positions = np.arange(len(self.rows))
        else:
            positions = np.flatnonzero(self.scores > 0)
        return torch.from_numpy(positions).to(self.rows.device)

    def run(self, attempt: Attempt) -> None:
        """Run an attempt on the images that it could worsen, and update the worst case."""
        positions = self.attackable_positions()
        if not len(positions):
            return
        x_adv = attempt(self.rows[positions])
        if self.context.stochastic:
            self._add_outcomes(x_adv)
            attempt_images = x_adv
        else:
            self._replace(positions, x_adv)
            attempt_images = self.x_adv.clone()
        if self.keep_images:
            self.images.append(attempt_images)

    def _replace(self, positions: Tensor, x_adv: Tensor) -> None:
        """Take the images of an attempt behind a deterministic purifier.

        Where nothing succeeds, x_adv is then the last attempt and not the clean image.
        """
        self.x_adv[positions] = x_adv
        scores = self.context.score_rows(x_adv, self.rows[positions], "score", 1)
        self.scores[positions.cpu().numpy()] = scores

    def _add_outcomes(self, x_adv: Tensor) -> None:
        """Score an attempt behind a stochastic purifier, and choose the worst attempt again."""
        context = self.context
        select = context.classify_draws(x_adv, self.rows, "select", SELECT_DRAWS)
        score = context.classify_draws(x_adv, self.rows, "score", context.budget.score_draws)
        images = x_adv.clone() if self.keep_images else None
        self.outcomes.append(DrawOutcomes(select, score, images))
        worst, worst_outcomes = choose_worst_attempts(self.outcomes)
        self.scores = np.asarray(worst_outcomes.score.mean(1), np.float64)
        for number, outcomes in enumerate(self.outcomes):
            if outcomes.x_adv is not None:
                is_worst = torch.from_numpy(worst == number).to(self.rows.device)
                self.x_adv[is_worst] = outcomes.x_adv[is_worst]

    def copy(self) -> AttackedImages:
        """Return a copy to which attempts can be added; both share the list of alternatives."""
        other = copy.copy(self)
        other.x_adv = self.x_adv.clone()
        other.scores = self.scores.copy()
        other.outcomes = list(self.outcomes)
        other.images = list(self.images)
        return other


def pipeline_attempts(
    context: Context, specs: Sequence[str], backward: Backward | None = None
) -> Iterator[Attempt]:
    """Yield the attacks of these specs on the audited pipeline; backward replaces its gradient."""
    for spec in specs:
        yield partial(_attack_pipeline, context, spec, backward)


def _attack_pipeline(
    context: Context, spec: str, backward: Backward | None, rows: Tensor
) -> Tensor:
    eot = None if backward is None else context.copies
    return context.attack(spec, context.target(rows, backward, eot), rows)


def compare_attempts(
    baseline: AttackedImages,
    make_attempts: Callable[[], Iterable[Attempt]],
    baseline_name: str = "the declared gradient's best",
    describe_cost: Callable[[], str] = str,
) -> CheckResult:
    """Return whether these attempts together break more images than the baseline.

    They run first on the images that the baseline leaves correct, because only there anything can
    be gained. If that is too little to matter, nothing else runs, and nothing is tested. Otherwise
    they run on the other images, too: some of these may resist them, and a paired test needs both.

    make_attempts is called only if the baseline leaves enough images; otherwise NotApplicable is
    raised. describe_cost returns what is said of the attempts where they ran.
    """
    is_correct = baseline.scores > 0
    images = f"the {100 * baseline.accuracy:.1f} % still correct"
    if 100 * baseline.accuracy < MIN_GAP:
        raise NotApplicable(f"{images} are too few for any attack to matter")
    attempts = list(make_attempts())
    scores = baseline.scores.copy()
    scores[is_correct] = _attack_part(baseline, is_correct, attempts).scores
    gain = float((baseline.scores[is_correct] - scores[is_correct]).sum()) / len(scores)
    if 100 * gain < MIN_GAP:
        broken = f"{100 * gain:.1f} points" if gain > 0 else "none"
        return CheckResult(
            measured=f"breaks {broken} of {images}{describe_cost()}",
            value=gain,
            gap=gain,
            accuracy=baseline.accuracy - gain,
        )
    if not is_correct.all():
        scores[~is_correct] = _attack_part(baseline, ~is_correct, attempts).scores
    measured = (
        f"leaves {100 * scores.mean():.1f} %,"
        f" {baseline_name} {100 * baseline.accuracy:.1f} %{describe_cost()}"
    )
    gap = float((baseline.scores - scores).mean())
    p = baseline.context.p_value_of_attack(scores, baseline.scores)
    return CheckResult(measured=measured, value=gap, gap=gap, p=p, accuracy=float(scores.mean()))


def _attack_part(
    baseline: AttackedImages, mask: NDArray[np.bool_], attempts: Sequence[Attempt]
) -> AttackedImages:
    """Run the attempts on the images of a mask (n,); add the result to the alternatives."""
    positions = torch.from_numpy(np.flatnonzero(mask)).to(baseline.rows.device)
    attacked = AttackedImages(baseline.context, baseline.rows[positions], keep_images=False)
    for attempt in attempts:
        attacked.run(attempt)
    baseline.alternatives.append(attacked)
    return attacked


def worst_over_alternatives(declared: AttackedImages) -> Floats:
    """Return the scores (n,) of the worst case over the declared gradient and every alternative.

    declared: all n images, in order.
    """
    if declared.context.stochastic:
        return _choose_over_alternatives(declared)
    lowest = declared.scores.copy()
    for alternative in declared.alternatives:
        positions = alternative.rows.cpu().numpy()
        lowest[positions] = np.minimum(lowest[positions], alternative.scores)
    return lowest


def _choose_over_alternatives(declared: AttackedImages) -> Floats:
    """Return the scores (n,) if the worst of all attempts is chosen at once.

    Where an alternative did not run, its outcomes are those of the declared gradient's worst case.
    """
    _, declared_worst = choose_worst_attempts(declared.outcomes)
    candidates = list(declared.outcomes)
    for alternative in declared.alternatives:
        positions = alternative.rows.cpu().numpy()
        for outcomes in alternative.outcomes[1:]:  # without the clean image
            candidates.append(outcomes.inserted_into(declared_worst, positions))
    _, worst = choose_worst_attempts(candidates)
    return np.asarray(worst.score.mean(1), np.float64)


def round_to_8_bit(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """Return x_adv rounded towards x to multiples of 1/255, so that it stays in the ball.

    A pixel with no multiple between x_adv and x becomes that of x.
    """
    levels = x_adv * 255
    is_level = (levels - levels.round()).abs() < GRID_TOLERANCE
    levels = torch.where(is_level, levels.round(), levels)
    rounded = torch.where(x_adv > x, levels.floor(), levels.ceil()) / 255
    rounded = torch.where(x_adv > x, rounded.maximum(x), rounded.minimum(x))
    check_adversarial(rounded, x, eps, "Linf", "8-bit")
    return rounded
