"""Is each image right behind a defense, draw by draw."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor

from defend.benchmarks.cell import Cell
from defend.benchmarks.components import Components
from defend.benchmarks.purifier_checks import (
    SELECT,
    check_batch_independence,
    check_declared_deterministic,
    logits_after_purify,
    purified,
    same,
)
from defend.errors import BrokenPurifier
from defend.hashing import tensor_sha256
from defend.noise import Noise
from defend.purifier import Purifier

KEPT = 4  # draws whose images are kept: of them one at least should differ
SAMPLES = 6  # images kept for the report, of the first unit


@dataclass(frozen=True)
class ScoredImages:
    """Images of a range behind one defense. right: uint8, `score` (b, draws), and `select` (b, 10) where it is stochastic."""

    right: dict[str, Tensor]
    kept: list[Tensor]  # purified, on the first draws; of clean images none
    images_per_second: float

    @property
    def drew(self) -> bool:
        """Does noise change any pixel? What calls itself stochastic is asked fewer queries, and no search is told to go on."""
        return any(not torch.equal(one, other) for one, other in pairwise(self.kept))


class RangeScorer:
    """One range. Clean images are scored once for each pipeline."""

    def __init__(self, components: Components, root: Noise, x: Tensor, y: Tensor) -> None:
        self.components, self.root, self.x, self.y = components, root, x, y
        self._range = tensor_sha256(x, y, root.uniform(x[:, :1, :1, :1]))

    def clean(self, cell: Cell) -> ScoredImages:
        kept, key = self.components.clean, (self._range, cell.classifier, cell.defense, cell.draws)
        if key not in kept:
            kept[key] = replace(self._scored(cell, self.x), kept=[])
        return cast(ScoredImages, kept[key])

    def attacked(self, cell: Cell, x_adv: Tensor) -> ScoredImages:
        """Behind a deterministic defense right under attack means right without it, too. Raises BrokenPurifier."""
        clean, found = self.clean(cell).right, self._scored(cell, x_adv)
        self._check_state(cell, x_adv, found.kept[0])
        if not self.components.defense(cell.defense).card.stochastic:
            found.right["score"] &= clean["score"]
        return found

    def samples(self, x_adv: Tensor, found: ScoredImages) -> dict[str, Tensor]:
        """The first images, for the report's strips."""
        images = {"sample_x": self.x, "sample_adv": x_adv, "sample_purified": found.kept[0]}
        return {name: t[:SAMPLES].half().cpu() for name, t in images.items()}

    def _scored(self, cell: Cell, x: Tensor) -> ScoredImages:
        forks = {"score": cell.draws} | (
            {"select": SELECT} if self.components.defense(cell.defense).card.stochastic else {}
        )
        right: dict[str, list[Tensor]] = {fork: [] for fork in forks}
        kept: list[Tensor] = []
        seconds = 0.0
        for fork, draws in forks.items():
            for draw in range(draws):
                images, correct, spent = self._draw(cell, x, self.root.fork(fork).draw(draw))
                right[fork].append(correct)
                seconds += spent
                kept += [images] if len(kept) < KEPT else []
        rate = len(x) * sum(forks.values()) / max(seconds, 1e-9)
        return ScoredImages(
            {fork: torch.stack(made, 1).to(torch.uint8).cpu() for fork, made in right.items()},
            kept,
            rate,
        )

    def _draw(self, cell: Cell, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor, float]:
        """Purified images, which of them are right (b,), and the seconds that purifying took. What the card calls deterministic is held to it here."""
        purifier, net = (
            self.components.defense(cell.defense),
            self.components.classifier(cell.classifier).network,
        )
        began = _now(x.device)
        images = purified(purifier, x, noise)
        spent, logits = _now(x.device) - began, logits_after_purify(purifier, net, images)
        if not purifier.card.stochastic:
            check_declared_deterministic(
                purifier,
                logits,
                logits_after_purify(purifier, net, purified(purifier, x, noise.fork("flags"))),
            )
        return images, logits.argmax(1) == self.y, spent

    def _check_state(self, cell: Cell, x: Tensor, images: Tensor) -> None:
        """images: what became of x on the first draw. Does it hang on x and noise alone, image by image? Raises BrokenPurifier."""
        used, noise = self.components.defense(cell.defense), self.root.fork("score").draw(0)
        net = self.components.classifier(cell.classifier).network

        def answers(purifier: Purifier) -> Tensor:
            return logits_after_purify(purifier, net, purified(purifier, x, noise))

        first, anew = (
            logits_after_purify(used, net, images),
            answers(self.components.fresh_defense(cell.defense)),
        )
        if not same(first, anew):
            why = _why(
                again=same(first, answers(used)),
                alike=same(anew, answers(self.components.fresh_defense(cell.defense))),
            )
            raise BrokenPurifier(
                f"{type(used).__name__}: one loaded anew answers otherwise: {why}; let purify depend on x and noise alone"
            )
        if self.components.precision == "float32":  # bfloat16 rounds otherwise in other batches
            check_batch_independence(used, x, images, noise)


def _why(*, again: bool, alike: bool) -> str:
    """again: does it answer the same twice? alike: do two that are loaded anew?"""
    if not again:
        return "it gives something else for the same image and noise, as by torch's own generator, or by what it saw"
    return "it remembers what it saw" if alike else "something is drawn when it is made"


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
