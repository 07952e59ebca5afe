"""AutoAttack, composed of the attacks of section 5 with the parameters of its published code.

Source: Croce, Hein, arXiv:2003.01690.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from defend.attack import Attack, AttackCard
from defend.attacks.worst_points import WorstPoints, judge
from defend.errors import BadParameter
from defend.learned import InBfloat16
from defend.losses import MIN_CLASSES, margin, whole_labels
from defend.noise import Noise
from defend.registry import REGISTRY
from defend.target import Target

# A margin below this share of the largest logit counts as nearly broken in a bfloat16 search. It is
# about ten roundings of bfloat16, within which another batch may get another answer.
NEARLY_BROKEN = 0.05


class AutoAttack(Attack):
    """Attack with the worst, for each image, of four attacks without a parameter to tune.

    version=standard: apgd on the cross entropy; apgd on the targeted DLR loss and fab, with 9
    target classes each; square. Each attacks only the images that are not yet broken. That is
    AutoAttack on a pipeline that is deterministic, differentiable, and the one that is scored.
    Where images may not be dropped, all four attack every image and the point of the smallest
    margin is returned: the same attacks, but no number that deserves the name.

    version=rand, for stochastic pipelines: apgd on the cross entropy and on the DLR loss, through
    the target's EOT copies (20 by default, as published), every image through both. An apgd whose
    loss needs more classes than there are is left out.

    search=bfloat16: the classifier is computed in bfloat16 during the search, which is faster on
    hardware with bfloat16 arithmetic. Every result is then judged on the target itself, and an
    image that is right on the target, but was broken or nearly broken in the search, is searched
    again in the target's own precision.

    Raises BadParameter if version=standard meets a stochastic pipeline.
    """

    card = AttackCard(paper="arXiv:2003.01690", access="gradient", norms=("Linf", "L2"))
    version: Literal["standard", "rand"] = "standard"
    # Steps of apgd and fab. With other steps, queries or targets, the attack is a cheaper or dearer
    # relative of AutoAttack.
    steps: int = 100
    queries: int = 5000  # of square
    targets: int = 9
    search: Literal["scored", "bfloat16"] = "scored"  # scored: in the precision of the target

    def validate(self) -> None:
        for field in ("steps", "queries", "targets"):
            self.require(getattr(self, field) >= 1, field, ">= 1")

    def unsupported(self, stochastic: bool, classes: int) -> str:
        if not stochastic or self.version != "standard":
            return ""
        return (
            "version=standard is for deterministic pipelines, and this one is stochastic: "
            "write autoattack:version=rand"
        )

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise) -> Tensor:
        y = whole_labels(y)
        logits = target.logits(x)
        reason = self.unsupported(not target.deterministic, logits.shape[1])
        if reason:
            raise BadParameter(f"autoattack: {reason}")
        worst = WorstPoints(
            x_adv=x,
            margin=torch.full_like(y, torch.inf, dtype=x.dtype),
            is_wrong=logits.argmax(1) != y,
        )
        for name, attack in self.create_attacks(logits.shape[1]).items():
            rows = torch.arange(len(x), device=x.device)
            if target.may_drop:
                rows = rows[~worst.is_wrong]
            if not len(rows):
                break
            part = target.take(rows)
            x_adv = self._search(attack, part, x[rows], y[rows], eps, noise.take(rows).fork(name))
            worst.update(rows, x_adv, *judge(target.take(rows), x_adv, y[rows]))
        # Square notes its queries for the images that it attacked, which may be fewer than all.
        target.notes.pop("wrong_after", None)
        return worst.x_adv

    def _search(
        self, attack: Attack, target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise
    ) -> Tensor:
        """Return the adversarial images of one attack, searched in the precision of `search`."""
        if self.search == "scored":
            return attack.run(target, x, y, eps, noise)
        fast_target = replace(target, classifier=InBfloat16(target.classifier))
        x_adv = attack.run(fast_target, x, y, eps, noise)
        if not target.may_drop:
            return x_adv
        logits = fast_target.logits(x_adv)
        is_nearly_broken = margin(logits, y) < NEARLY_BROKEN * logits.abs().amax(1)
        _, is_wrong = judge(target, x_adv, y)
        retry = (is_nearly_broken & ~is_wrong).nonzero()[:, 0]
        if not len(retry):
            return x_adv
        retried = attack.run(target.take(retry), x[retry], y[retry], eps, noise.take(retry))
        return x_adv.index_copy(0, retry, retried)

    def create_attacks(self, classes: int) -> dict[str, Attack]:
        """Return the attacks in the published order, under the names that fork their noise.

        classes: the number of classes of the classifier.
        """
        attacks = {"apgd-ce": self._create("apgd", loss="ce", steps=self.steps)}
        if self.version == "rand":
            if classes >= MIN_CLASSES["dlr"]:
                attacks["apgd-dlr"] = self._create("apgd", loss="dlr", steps=self.steps)
            return attacks
        if classes >= MIN_CLASSES["dlr-targeted"]:
            attacks["apgd-t"] = self._create(
                "apgd", loss="dlr-targeted", steps=self.steps, targets=self.targets
            )
        attacks["fab-t"] = self._create("fab", steps=self.steps, targets=self.targets)
        attacks["square"] = self._create(
            "square", queries=self.queries, rescale=False, redraw=False
        )
        return attacks

    def _create(self, name: str, **fields: object) -> Attack:
        attack: Attack = REGISTRY.create("attack", name, norm=self.norm, **fields)
        return attack
