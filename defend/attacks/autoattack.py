"""AutoAttack: Croce, Hein, arXiv:2003.01690, section 5, in the composition and with the parameters of its published code."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from defend.attack import Attack, AttackCard
from defend.attacks.active_set import mean_margin
from defend.errors import BadParameter
from defend.learned import Lowered
from defend.losses import CLASSES, margin
from defend.noise import Noise
from defend.norms import per_image
from defend.registry import REGISTRY
from defend.target import Target

NEARLY = 0.05  # of the largest logit: some ten roundings of bfloat16, in which another batch may be answered otherwise


class AutoAttack(Attack):
    """The worst, for each image, of four attacks without a parameter to tune.

    standard: apgd on the cross entropy; apgd on the targeted DLR loss and fab, 9 target classes each; square. Each meets only the images
    that still stand. That is AutoAttack on a pipeline that is deterministic, differentiable, and the one that is scored. Where images
    may not be dropped, all four meet every image and the point of the smallest margin is returned: the same attacks, but no number that
    deserves the name. rand, for stochastic pipelines: apgd on the cross entropy and on the DLR loss, through the target's EOT copies (20
    by default, as published), every image through both. Of losses that need more classes than there are, apgd runs none.

    search=bfloat16: the classifier is computed in bfloat16 while the four search, which is faster where the machine has it in silicon. The
    target itself judges every answer, and an image that stands there, but fell or nearly fell in the search, is searched for again as the
    target computes.

    Raises BadParameter where standard meets a stochastic pipeline.
    """

    card = AttackCard(paper="arXiv:2003.01690", access="gradient", norms=("Linf", "L2"))
    version: Literal["standard", "rand"] = "standard"
    steps: int = 100  # of apgd and fab. With other steps, queries or targets it is a cheaper or dearer relative of AutoAttack
    queries: int = 5000  # of square
    targets: int = 9
    search: Literal["scored", "bfloat16"] = (
        "scored"  # how the classifier computes meanwhile: as it is scored
    )

    def validate(self) -> None:
        for field in ("steps", "queries", "targets"):
            self.require(getattr(self, field) >= 1, field, ">= 1")

    def unsupported(self, stochastic: bool, classes: int) -> str:
        refused = stochastic and self.version == "standard"
        return (
            "version=standard is for deterministic pipelines, and this one is stochastic: write autoattack:version=rand"
            if refused
            else ""
        )

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise) -> Tensor:
        logits = target.logits(x)
        if why := self.unsupported(not target.deterministic, logits.shape[1]):
            raise BadParameter(f"autoattack: {why}")
        worst, least = x, torch.full_like(y, torch.inf, dtype=x.dtype)
        standing = logits.argmax(1) == y
        for name, attack in self.members(logits.shape[1]).items():
            rows = (
                standing.nonzero()[:, 0]
                if target.may_drop
                else torch.arange(len(x), device=x.device)
            )
            if not len(rows):
                break
            adv = self._searched(
                attack, target.take(rows), x[rows], y[rows], eps, noise.take(rows).fork(name)
            )
            left, wrong = _judged(target.take(rows), adv, y[rows])
            lower = wrong | (left < least[rows])
            worst = worst.index_copy(0, rows, torch.where(per_image(lower, x), adv, worst[rows]))
            least = least.index_copy(0, rows, torch.minimum(left, least[rows]))
            standing = standing.index_copy(0, rows, standing[rows] & ~wrong)
        target.notes.pop("wrong_after", None)  # of square, for the images that it met
        return worst

    def _searched(
        self, attack: Attack, target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise
    ) -> Tensor:
        if self.search == "scored":
            return attack.run(target, x, y, eps, noise)
        fast = replace(target, classifier=Lowered(target.classifier))
        adv = attack.run(fast, x, y, eps, noise)
        if not target.may_drop:
            return adv
        logits = fast.logits(adv)
        fell = margin(logits, y) < NEARLY * logits.abs().amax(1)
        again = (fell & ~_judged(target, adv, y)[1]).nonzero()[:, 0]
        return (
            adv.index_copy(
                0, again, attack.run(target.take(again), x[again], y[again], eps, noise.take(again))
            )
            if len(again)
            else adv
        )

    def members(self, classes: int) -> dict[str, Attack]:
        """Attacks by a name for their noise, in the published order."""
        ce = self._made("apgd", loss="ce", steps=self.steps)
        if self.version == "rand":
            return {"apgd-ce": ce} | (
                {"apgd-dlr": self._made("apgd", loss="dlr", steps=self.steps)}
                if classes >= CLASSES["dlr"]
                else {}
            )
        targeted = (
            {
                "apgd-t": self._made(
                    "apgd", loss="dlr-targeted", steps=self.steps, targets=self.targets
                )
            }
            if classes >= CLASSES["dlr-targeted"]
            else {}
        )
        fab = self._made("fab", steps=self.steps, targets=self.targets)
        return (
            {"apgd-ce": ce}
            | targeted
            | {
                "fab-t": fab,
                "square": self._made("square", queries=self.queries, rescale=False, redraw=False),
            }
        )

    def _made(self, name: str, **fields: object) -> Attack:
        made: Attack = REGISTRY.create("attack", name, norm=self.norm, **fields)
        return made


def _judged(target: Target, adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(mean margin, is it wrong as the score counts it?), each (b,). Of highest logits that are equal the first one is the answer.

    Where no image may be dropped the smallest margin alone decides, and none counts as wrong.
    """
    if not target.may_drop:
        return mean_margin(target, adv, y), torch.zeros_like(y, dtype=torch.bool)
    logits = target.logits(adv)
    return margin(logits, y), logits.argmax(1) != y
