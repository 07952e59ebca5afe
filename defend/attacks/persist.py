"""A search that goes on, by other gradients, losses and starts, until nothing more breaks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from defend.attack import Attack, AttackCard
from defend.attacks.active_set import likeliest_wrong_classes, select_smallest_margin
from defend.attacks.apgd_ascent import Ascent, start_at_eps
from defend.attacks.gradient_paths import AveragedAscent, usable_paths
from defend.attacks.worst_points import WorstPoints, judge
from defend.losses import (
    MIN_CLASSES,
    cross_entropy,
    dlr,
    negative_margin,
    targeted_margin,
    whole_labels,
)
from defend.noise import Noise
from defend.registry import REGISTRY
from defend.search_moves import DECLARED, NEVER, STARTS, Move
from defend.target import Loss, Target

# The losses that take the labels alone, in the order in which rounds climb them.
LABEL_LOSSES: dict[str, Loss] = {
    "margin": negative_margin,
    "cross entropy": cross_entropy,
    "dlr": dlr,
}
BEST_PATHS = 2  # gradients through which an image's targets are climbed: the best of that image
FIRST_STEP = {"random": 2.0, "best": 0.5, "oblivious": 1.0}  # of an ascent from there, in eps
SQUARE_SHARE = 0.05  # of the pixels, in the first squares around a best point
SURE_DRAWS = 20  # all of them wrong: an image behind noise counts as broken


class Persist(Attack):
    """Attack in rounds, each with other means, those images that still stand, until nothing falls.

    A round, through each gradient of `usable_paths` (declared, relaxed at several temperatures,
    identity, plain autograd): an ascent (`apgd_ascent`) on the margin, the cross entropy or the DLR
    loss, whose turn it is, from a random point, from the best point so far, or from a point that
    breaks the bare classifier. Then, for each image, through the two gradients that have brought
    its margin lowest: ascents on z_t - z_y towards its likeliest wrong classes t. Then through its
    best gradient, averaged over random points nearby. Then Square from its best point.

    The best point of an image is that of the smallest margin on the target itself, whatever
    gradient led there. The search ends after `idle_rounds` successive rounds that each break less
    than `gain` of all images, or after `rounds`. An image is left alone once it is broken only if
    the target is the scored pipeline; behind noise it is broken if 20 fresh draws are all wrong.

    The notes say for each image in which round it was broken, by which `Move`, and how many rounds
    were made. The rounds depend on the whole batch, so that an image's result does, too.
    """

    card = AttackCard(
        paper="none: this project's own",
        access="gradient",
        norms=("Linf", "L2"),
        per_image=False,
        chooses_gradients=True,
    )
    gradients: Literal["every", "declared"] = "every"  # through which it differentiates
    steps: int = 100  # of each ascent
    targets: int = 9  # wrong classes of each image, at most
    queries: int = 500  # of Square in each round
    rounds: int = 20  # at most
    idle_rounds: int = 2
    gain: float = 0.005  # the share of all images that a round must break in order not to be idle

    def validate(self) -> None:
        for field in ("steps", "targets", "rounds", "idle_rounds"):
            self.require(getattr(self, field) >= 1, field, ">= 1")
        self.require(self.queries >= 0, "queries", ">= 0; 0 leaves Square out")
        self.require(0 <= self.gain <= 1, "gain", "0 to 1, a share of the images")

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise) -> Tensor:
        search = _Search.begin(self, target, x, whole_labels(y), eps, noise)
        state_file = target.state_file(eps) if target.state_file else None
        if state_file:
            search.go_on_from(state_file.read())
        while not search.is_over():
            search.run_round()
            if state_file:
                state_file.write(search.state())
        search.write_notes()
        return search.worst.x_adv


@dataclass(kw_only=True)
class _Search:
    """The state of a search for all images of a batch."""

    attack: Persist
    target: Target
    x: Tensor
    y: Tensor
    eps: float
    noise: Noise
    classes: int
    paths: dict[str, Target]
    worst: WorstPoints
    lowest: Tensor  # (b, paths): the smallest margin that each gradient led to
    broken_in: Tensor  # (b,): the round, 0 for images that were wrong at first, NEVER
    broken_by: Tensor  # (b, 3): the numbers of the move
    rounds: int = 0  # that were made
    idle: int = 0  # how many of the last rounds broke next to nothing

    @classmethod
    def begin(
        cls, attack: Persist, target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise
    ) -> _Search:
        """Return the search before its first round."""
        logits = target.logits(x)
        every = attack.gradients == "every"
        paths = usable_paths(target, x, y) if every else {DECLARED: target}
        is_wrong = (logits.argmax(1) != y) & target.deterministic
        infinite = torch.full((len(x), len(paths)), torch.inf, dtype=x.dtype, device=x.device)
        return cls(
            attack=attack,
            target=target,
            x=x,
            y=y,
            eps=eps,
            noise=noise,
            classes=logits.shape[1],
            paths=paths,
            worst=WorstPoints(
                x_adv=start_at_eps(x, eps, attack.norm, noise.fork("first")),
                margin=infinite[:, 0].clone(),
                is_wrong=is_wrong,
            ),
            lowest=infinite,
            broken_in=torch.where(is_wrong, 0, NEVER),
            broken_by=torch.full((len(x), 3), NEVER, device=x.device),
        )

    def standing(self) -> Tensor:
        """Return the rows of the images that are still attacked."""
        rows = torch.arange(len(self.x), device=self.x.device)
        return rows[self.broken_in == NEVER] if self.target.scored else rows

    def is_over(self) -> bool:
        """Return True if nothing stands, nothing falls any more, or all rounds were made."""
        is_idle = self.idle >= self.attack.idle_rounds
        return is_idle or self.rounds >= self.attack.rounds or not len(self.standing())

    def run_round(self) -> None:
        """Make the next round."""
        self.rounds += 1
        self._climb_labels()
        self._climb_targets()
        self._climb_averages()
        self._search_squares()
        self._measure_again()
        broken = int((self.broken_in == self.rounds).sum())
        self.idle = self.idle + 1 if broken < self.attack.gain * len(self.x) else 0

    def state(self) -> dict[str, Tensor]:
        """Return all that the next round depends on."""
        counts = [self.rounds, self.idle, *self.target.counts.values()]
        return {
            "counts": torch.tensor(counts),
            "drawn": self.target.drawn.cpu(),
            **{name: values.cpu() for name, values in self._tensors().items()},
        }

    def go_on_from(self, state: dict[str, Tensor]) -> None:
        """Take up a state; one of nothing changes nothing."""
        if not state:
            return
        self.rounds, self.idle, *counts = state["counts"].tolist()
        self.target.counts.update(zip(self.target.counts, counts, strict=True))
        self.target.drawn.copy_(state["drawn"])
        for name, values in self._tensors().items():
            values.copy_(state[name])

    def _tensors(self) -> dict[str, Tensor]:
        """Return the tensors that rounds change, by name."""
        return {
            "x_adv": self.worst.x_adv,
            "margin": self.worst.margin,
            "is_wrong": self.worst.is_wrong,
            "lowest": self.lowest,
            "broken_in": self.broken_in,
            "broken_by": self.broken_by,
        }

    def write_notes(self) -> None:
        """Say for each image when and by what it was broken."""
        self.target.notes.pop("wrong_after", None)  # of Square, of a part of the images
        self.target.note("broken_in_round", self.broken_in)
        self.target.note("broken_by", self.broken_by)
        self.target.note("rounds", torch.full_like(self.y, self.rounds))

    # The parts of a round.

    def _climb_labels(self) -> None:
        losses = list(LABEL_LOSSES)
        if self.classes < MIN_CLASSES["dlr"]:
            losses.remove("dlr")
        loss = losses[(self.rounds - 1) % len(losses)]
        start = STARTS[(self.rounds - 1) % len(STARTS)]
        for path in self.paths:
            move, rows = Move(path, loss, start), self.standing()
            if len(rows):
                self._climb(move, rows, LABEL_LOSSES[loss])

    def _climb_targets(self) -> None:
        """Climb towards wrong classes from best points in odd rounds, from random ones in even."""
        start = STARTS[self.rounds % 2]
        for path, rows in self._rows_by_path(BEST_PATHS):
            self._climb_to_classes(Move(path, "targets", start), rows)

    def _climb_averages(self) -> None:
        if not self.target.deterministic:
            return  # copies of a stochastic pipeline are averaged already
        for path, rows in self._rows_by_path(1):
            move = Move(path, "averaged margin", "best")
            self._climb(move, rows, negative_margin, AveragedAscent)

    def _search_squares(self) -> None:
        rows = self.standing()
        if not len(rows) or not self.attack.queries:
            return
        fields = {"queries": self.attack.queries, "p_init": SQUARE_SHARE}
        square = REGISTRY.create("attack", "square", norm=self.attack.norm, **fields)
        move, first = Move("none", "square", "best"), self.worst.x_adv[rows]
        noise = self._noise(move, rows)
        target = self.target.take(rows)
        x_adv = square.search(target, self.x[rows], self.y[rows], self.eps, noise, first)
        self._update(move, rows, x_adv)

    def _measure_again(self) -> None:
        """Measure best points behind noise afresh, so that no lucky draw holds for ever."""
        if not self.target.deterministic:
            self.worst.margin = judge(self.target, self.worst.x_adv, self.y)[0]

    # Moves.

    def _climb(
        self, move: Move, rows: Tensor, loss: Loss, ascent_type: type[Ascent] = Ascent
    ) -> None:
        """Climb a loss of the labels of these images."""
        target, x, y = self.paths[move.gradient].take(rows), self.x[rows], self.y[rows]
        start = self._start(move, rows)
        ascent = self._ascent(move, loss, ascent_type)
        self._update(move, rows, ascent.run(target, x, y, y, start).best)

    def _climb_to_classes(self, move: Move, rows: Tensor) -> None:
        """Climb towards the likeliest wrong classes at the best points, side by side."""
        target, y = self.paths[move.gradient].take(rows), self.y[rows]
        points = self.worst.x_adv[rows]
        wanted = likeliest_wrong_classes(target, points, y, self.attack.targets)
        n = wanted.shape[1]
        labels = torch.stack([y[:, None].expand_as(wanted), wanted], 2).flatten(0, 1)
        copies, x, y = target.copies(n), self.x[rows].repeat_interleave(n, 0), y[:, None]
        y = y.expand_as(wanted).flatten()
        start = self._start(move, rows, n)
        ascent = self._ascent(move, targeted_margin)
        ends = ascent.run(copies, x, labels, y, start, n).best
        self._update(move, rows, select_smallest_margin(copies, ends, y, n))

    def _ascent(self, move: Move, loss: Loss, ascent_type: type[Ascent] = Ascent) -> Ascent:
        return ascent_type(
            loss=loss,
            norm=self.attack.norm,
            eps=self.eps,
            steps=self.attack.steps,
            first_step=FIRST_STEP[move.start],
        )

    def _start(self, move: Move, rows: Tensor, copies: int = 1) -> Tensor:
        """Return where the move starts: (b copies, c, h, w)."""
        noise, x = self._noise(move, rows).copies(copies), self.x[rows]
        if move.start == "best":
            return self.worst.x_adv[rows].repeat_interleave(copies, 0)
        if move.start == "random":
            return start_at_eps(x.repeat_interleave(copies, 0), self.eps, self.attack.norm, noise)
        return self._oblivious_points(move, rows)

    def _oblivious_points(self, move: Move, rows: Tensor) -> Tensor:
        """Return points that the bare classifier gets wrong, as far as one ascent finds them."""
        no_purifier = REGISTRY.create("defense", "none")
        bare = replace(self.target.through(None), purifier=no_purifier, scored=False)
        x, y, noise = self.x[rows], self.y[rows], self._noise(move, rows)
        start = start_at_eps(x, self.eps, self.attack.norm, noise)
        return self._ascent(move, cross_entropy).run(bare.take(rows), x, y, y, start).best

    def _noise(self, move: Move, rows: Tensor) -> Noise:
        return self.noise.take(rows).fork(f"round {self.rounds}: {move}")

    # Results.

    def _update(self, move: Move, rows: Tensor, x_adv: Tensor) -> None:
        """Keep the points that are worse than the worst so far, and note what they broke."""
        margin, is_wrong = judge(self.target.take(rows), x_adv, self.y[rows])
        self.worst.update(rows, x_adv, margin, is_wrong)
        if move.gradient in self.paths:
            path = list(self.paths).index(move.gradient)
            self.lowest[rows, path] = torch.minimum(self.lowest[rows, path], margin)
        newly = self._broken(rows, x_adv, is_wrong) & (self.broken_in[rows] == NEVER)
        self.broken_in[rows[newly]] = self.rounds
        self.broken_by[rows[newly]] = torch.tensor(move.numbers(), device=rows.device)

    def _broken(self, rows: Tensor, x_adv: Tensor, is_wrong: Tensor) -> Tensor:
        """Return which images (b,) are broken at x_adv."""
        if self.target.deterministic:
            return is_wrong if self.target.may_drop else self._draws_wrong(rows, x_adv, 1)
        return self._draws_wrong(rows, x_adv, SURE_DRAWS)

    def _draws_wrong(self, rows: Tensor, x_adv: Tensor, draws: int) -> Tensor:
        """Return which images (b,) are wrong in each of so many fresh draws."""
        target, y = self.target.take(rows), self.y[rows]
        wrong = [target.logits(x_adv).argmax(1) != y for _ in range(draws)]
        return torch.stack(wrong).all(0)

    def _rows_by_path(self, count: int) -> Iterator[tuple[str, Tensor]]:
        """Yield each gradient with the standing images of which it is among the best `count`."""
        best = self.lowest.argsort(dim=1, stable=True)[:, :count]
        for number, path in enumerate(self.paths):
            rows = self.standing()
            rows = rows[(best[rows] == number).any(1)]
            if len(rows):
                yield path, rows
