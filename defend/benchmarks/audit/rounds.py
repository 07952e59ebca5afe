"""Per image the worst of several attacks, and the contest of other attacks with the declared gradient's best."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from defend.benchmarks.audit.model import Seen
from defend.benchmarks.audit.scene import Scene
from defend.benchmarks.audit.thresholds import THRESHOLDS
from defend.benchmarks.scoring import SELECT
from defend.benchmarks.stats import mcnemar, permutation
from defend.benchmarks.tables.outcomes import chosen
from defend.norms import check_attacked
from defend.purifier import Backward

Attempt = Callable[[Tensor], Tensor]  # rows of the scene (b,) -> x_adv (b, c, h, w)


class _Tried:
    """What an attempt gave, draw by draw."""

    def __init__(self, scene: Scene, x_adv: Tensor, rows: Tensor, images: bool) -> None:
        self.select = scene.outcomes(x_adv, rows, "select", SELECT) if scene.stochastic else None
        self.score = scene.outcomes(x_adv, rows, "score", scene.plan.draws)
        self.x_adv = x_adv.clone() if images and scene.stochastic else None


class Best:
    """Per image the worst of what was tried; the clean image is one.

    Deterministic: right where right under all, so that an attack is run on what still stands. Stochastic: chosen as the bench chooses
    (tables/outcomes.chosen), over the same images for every attack. The least of ten draws falls by itself, and leads to weak attacks.
    """

    def __init__(self, scene: Scene, rows: Tensor, images: bool = True) -> None:
        """images=False: keeps no images of single attempts; of a stochastic purifier outcomes alone, and x_adv stays clean."""
        self.scene, self.rows, self.images, self.x_adv = scene, rows, images, scene.x[rows].clone()
        self.made: list[Tensor] = []  # the images of each attempt; where it was not run, those that broke the image
        self._tried = [_Tried(scene, self.x_adv, rows, images)]
        self.score = self._tried[0].score.mean(1)

    def standing(self) -> Tensor:
        """Places that a further attack could still worsen."""
        there = np.arange(len(self.rows)) if self.scene.stochastic else np.flatnonzero(self.score > 0)
        return torch.from_numpy(there).to(self.rows.device)

    def run(self, attempt: Attempt) -> None:
        """An attack on what still stands."""
        at = self.standing()
        if not len(at):
            return
        x_adv = attempt(self.rows[at])
        if self.scene.stochastic:
            self._tried.append(_Tried(self.scene, x_adv, self.rows, self.images))
            self._choose()
            self.made += [x_adv] * self.images
        else:  # of equals the last is kept: where nothing succeeds, an attempt and not the clean image
            self.x_adv[at], self.score[at.cpu().numpy()] = x_adv, self.scene.right(x_adv, self.rows[at], "score", 1)
            self.made += [self.x_adv.clone()] * self.images

    def _choose(self) -> None:
        """As the bench chooses: on `select`, read off on `score`."""
        picked, places = chosen(np.stack([t.select for t in self._tried if t.select is not None])), np.arange(len(self.rows))
        self.score = np.stack([t.score for t in self._tried])[picked, places].mean(1)
        for k, tried in enumerate(self._tried):
            if tried.x_adv is not None:
                mine = torch.from_numpy(picked == k).to(self.rows.device)
                self.x_adv[mine] = tried.x_adv[mine]

    def copy(self) -> Best:
        new = copy.copy(self)
        new.x_adv, new.score, new._tried, new.made = self.x_adv.clone(), self.score.copy(), [*self._tried], [*self.made]
        return new

    @property
    def accuracy(self) -> float:
        return float(self.score.mean())


def through(scene: Scene, specs: Sequence[str], backward: Backward | None = None) -> Iterator[Attempt]:
    """Attacks on the audited pipeline."""
    for spec in specs:
        yield lambda rows, s=spec: scene.attack(s, scene.target(rows, backward), rows)  # type: ignore[misc]


def contest(
    scene: Scene, declared: Best, make: Callable[[], Iterable[Attempt]], named: str = "the declared gradient's best", spent: Callable[[], str] = str
) -> Seen:
    """Do these attacks together break more images than the declared gradient's best?

    They are made only where enough stands to be won. First on the images that stand, where alone something can be won. Where that is
    little, it is all; else on the others too, for the images that the declared gradient breaks and these do not, and a paired test.
    spent: what they cost, to be said where they were run.
    """
    n, left, stands = len(scene.x), declared.score > 0, f"the {100 * declared.accuracy:.1f} % that stand"
    if 100 * declared.accuracy < THRESHOLDS["gap"].value - 1e-9:
        return Seen(measured=f"of {stands}, no attack can win enough", value=0.0, gap=0.0, p=1.0)
    attempts = list(make())
    first = _worst(scene, left, attempts)
    won = float((declared.score[left] - first.score).sum()) / n
    if 100 * won < THRESHOLDS["gap"].value - 1e-9:
        _keep(scene, np.where(left, _placed(left, first.score), declared.score))
        return Seen(measured=(f"breaks {100 * won:.1f} points of {stands}" if won > 0 else f"breaks none of {stands}") + spent(), value=won, gap=won, p=1.0)
    other = declared.score.copy()
    other[left] = first.score
    if not left.all():
        other[~left] = _worst(scene, ~left, attempts).score
    _keep(scene, other)
    gap, test = float((declared.score - other).mean()), permutation if scene.stochastic else mcnemar
    measured = f"leaves {100 * other.mean():.1f} %, {named} {100 * declared.accuracy:.1f} %{spent()}"
    return Seen(measured=measured, value=gap, gap=gap, p=test(other, declared.score))


def _placed(where: np.ndarray, values: np.ndarray) -> np.ndarray:
    out = np.zeros(len(where))
    out[where] = values
    return out


def _keep(scene: Scene, score: np.ndarray) -> None:
    """The lowest so far: image by image; of a stochastic purifier, whose minima of estimates fall by themselves, the lower mean."""
    if scene.stochastic:
        scene.lowest = min(scene.lowest, score, key=np.mean)
    else:
        scene.lowest = np.minimum(scene.lowest, score)


def _worst(scene: Scene, rows: np.ndarray, attempts: Sequence[Attempt]) -> Best:
    best = Best(scene, torch.from_numpy(np.flatnonzero(rows)).to(scene.x.device), images=False)
    for attempt in attempts:
        best.run(attempt)
    return best


def to_grid(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """The nearest multiples of 1/255 towards x: never farther from x than x_adv."""
    scaled = x_adv * 255
    scaled = torch.where((scaled - scaled.round()).abs() < 1e-3, scaled.round(), scaled)  # a level already, but for float32
    rounded = torch.where(x_adv > x, scaled.floor(), scaled.ceil()) / 255
    out = torch.where(x_adv > x, rounded.maximum(x), rounded.minimum(x))
    check_attacked(out, x, eps, "Linf", "8-bit")
    return out
