"""Verification: is it the person that it claims to be?

The score of a claim is the classifier's logit of that person, for a face classifier scale times
the cosine between the embedding and the enrolled mean. The thresholds are those at which 1 % and
.1 % of the impostor attempts of clean `val` images are accepted behind the same deployed pipeline.
They are fixed before any attack and held.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defend.stats import interval, mean_interval
from defend.tasks.error_rates import Attempts, threshold_at
from defend.tasks.goals import GoalTask
from defend.tasks.task import Arrays, Deployed, Measure, Summary

FARS = {"far_1": 0.01, "far_01": 0.001}  # names of the thresholds -> false acceptance rates


class Verification(GoalTask):
    """Score 1 for each image about whose claim the verifier is right at FAR 1 %.

    With goal=dodging each image claims to be its own person and should be accepted, so that the
    mean score is TAR. With goal=impersonation it claims to be the target (`with_targets`) and
    should be rejected. Attackers lower the score of the own person, or raise that of the target.
    """

    name = "verification"
    needs_calibration = True
    label_is_goal = False  # of the scores, one alone is claimed

    def validate(self) -> None:
        """Raise BadParameter for an unknown goal."""
        super().validate()
        self._thresholds: dict[str, float] = {}
        self._accepted: dict[str, int] = {}

    @property
    def score_means(self) -> str:
        """Return what a share counts."""
        if self.is_targeted:
            return "impostors rejected at FAR 1 %"
        return "accepted at FAR 1 % (TAR)"

    @property
    def measured(self) -> Mapping[str, Measure]:
        """Return what is measured beside the share at FAR 1 %."""
        return _TARGETED if self.is_targeted else _DODGING

    @property
    def thresholds(self) -> dict[str, float]:
        """Return the thresholds that calibration fixed, by the names of FARS; none before it."""
        return self._thresholds

    @property
    def accepted(self) -> dict[str, int]:
        """Return how many impostor attempts of `val` each threshold accepts."""
        return self._accepted

    def calibrated(self, output: Tensor, reference: Tensor) -> Verification:
        """Return the task with thresholds from all impostor attempts of clean images.

        output: logits (n, classes); reference: as `reference` returns it.
        """
        impostors = _others(output, self._own(reference)).cpu().numpy()
        task = copy.copy(self)
        task._thresholds = {name: threshold_at(impostors, far) for name, far in FARS.items()}
        task._accepted = {
            name: int((impostors > threshold).sum()) for name, threshold in task._thresholds.items()
        }
        return task

    def _own(self, reference: Tensor) -> Tensor:
        return reference[:, 0] if self.is_targeted else reference

    def _claimed(self, output: Tensor, reference: Tensor) -> Tensor:
        """Return the score (b,) of the person that each image claims to be."""
        person = reference[:, 1] if self.is_targeted else reference
        return output.gather(1, person[:, None])[:, 0]

    def loss(self, output: Tensor, reference: Tensor) -> Tensor:
        """Return minus the score of the own person, or the score of the target: (b,)."""
        claimed = self._claimed(output, reference)
        return claimed if self.is_targeted else -claimed

    def is_broken(self, output: Tensor, reference: Tensor) -> Tensor:
        """Return which attacks succeed at FAR 1 %: (b,)."""
        return self.score(output, reference) == 0

    def score(self, output: Tensor, reference: Tensor) -> Tensor:
        """Return 1 where the verifier is right about the attempt at FAR 1 %: (b,)."""
        return self._verdict(self._claimed(output, reference), "far_1")

    def _verdict(self, claimed: Tensor, threshold: str) -> Tensor:
        is_accepted = claimed > self._thresholds[threshold]
        return (is_accepted != self.is_targeted).to(torch.uint8)

    def details(self, deployed: Deployed) -> dict[str, Tensor]:
        """Return the verdict at FAR .1 %, the claimed score, and for clean images all others'."""
        output, reference = deployed.output, deployed.reference
        claimed = self._claimed(output, reference)
        values = {"strict": self._verdict(claimed, "far_01"), "claimed": claimed}
        if deployed.is_clean:
            own = self._own(reference)
            values["own"] = output.gather(1, own[:, None])[:, 0]
            values["others"] = others = _others(output, own)
            for name, threshold in self._thresholds.items():
                values[f"{name}_reached"] = (others > threshold).double().mean(1)
        return values

    def measure(self, attacked: Arrays, clean: Arrays, seed: int) -> dict[str, Summary]:
        """Return the measures of `measured`; curves are of the first draw."""
        verdicts = {"strict": attacked["strict"], "clean_strict": clean["strict"]}
        measures = {}
        for name, outcomes in verdicts.items():
            low, high = interval(outcomes, seed)
            measures[name] = Summary(float(outcomes.mean()), low, high)
        for name in FARS:
            if f"{name}_reached" in clean:  # units of older versions lack it
                measures[f"{name}_reached"] = _mean(clean[f"{name}_reached"], seed)
        under_attack = self._attempts(attacked, clean)
        without = Attempts(_first_draw(clean["own"]), _first_draw(clean["others"]))
        measures["eer"] = Summary(*under_attack.equal_error_rate(seed))
        measures["clean_eer"] = Summary(*without.equal_error_rate(seed))
        return measures

    def curve(self, attacked: Arrays, clean: Arrays) -> tuple[tuple[float, float], ...]:
        """Return the ROC under attack: (FAR, TAR), of the first draw."""
        return self._attempts(attacked, clean).curve()

    def _attempts(self, attacked: Arrays, clean: Arrays) -> Attempts:
        """Return attacked genuine attempts beside clean impostors; for impersonation the other
        way round.
        """
        claimed = _first_draw(attacked["claimed"])
        if self.is_targeted:
            return Attempts(_first_draw(clean["own"]), claimed)
        return Attempts(claimed, _first_draw(clean["others"]))


def _others(output: Tensor, own: Tensor) -> Tensor:
    """Return the scores (b, classes - 1) of all people but the own."""
    is_other = torch.ones_like(output, dtype=torch.bool).scatter(1, own[:, None], False)
    return output[is_other].view(len(output), -1)


def _mean(shares: NDArray[np.generic], seed: int) -> Summary:
    """Return the mean of shares (n, draws) with its bootstrap interval over images."""
    per_image = np.asarray(shares, np.float64).mean(1)
    return Summary(float(per_image.mean()), *mean_interval(per_image, seed))


def _first_draw(values: NDArray[np.generic]) -> NDArray[np.float64]:
    """Return (n, m) of values (n, draws) or (n, draws, m)."""
    first = np.asarray(values[:, 0], np.float64)
    return first.reshape(len(first), -1)


def _measures(strict: str) -> Mapping[str, Measure]:
    texts = {
        "strict": (strict, True),
        "clean_strict": (strict, True),
        "eer": ("EER", False),
        "clean_eer": ("EER", False),
    }
    measures = {}
    for name, (heading, is_better) in texts.items():
        is_clean = name.startswith("clean_")
        measures[name] = Measure(
            heading=heading, unit="share", higher_is_better=is_better, clean=is_clean
        )
    for name, far in FARS.items():
        measures[f"{name}_reached"] = Measure(
            heading=f"FAR reached at the threshold of {100 * far:g} %",
            unit="share",
            higher_is_better=False,
            clean=True,
        )
    return measures


_DODGING = _measures("TAR at FAR .1 %")
_TARGETED = _measures("impostors rejected at FAR .1 %")
