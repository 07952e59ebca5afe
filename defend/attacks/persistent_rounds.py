"""The rounds of `persist`: their state, the moves that they make, and what they keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from defend.attacks.active_set import likeliest_wrong_classes, select_smallest_margin
from defend.attacks.apgd_ascent import Ascent, start_at_eps
from defend.attacks.gradient_paths import (
    AUTOGRAD_NAMES,
    AveragedAscent,
    moved_within,
    usable_paths,
)
from defend.attacks.worst_points import WorstPoints, is_worse_behind_noise, judge, judge_draws
from defend.losses import (
    MIN_CLASSES,
    cross_entropy,
    dlr,
    negative_margin,
    targeted_margin,
)
from defend.noise import Noise
from defend.registry import REGISTRY
from defend.search_moves import (
    ALL_ROUNDS,
    DECLARED,
    ENDS,
    IDLE,
    NEVER,
    NOTHING_STANDS,
    STARTS,
    Move,
)
from defend.target import Loss, Target

# The losses that take the labels alone, in the order in which a round climbs them.
LABEL_LOSSES: dict[str, Loss] = {
    "margin": negative_margin,
    "cross entropy": cross_entropy,
    "dlr": dlr,
}
BEST_PATHS = 2  # gradients through which an image's targets are climbed: the best of that image
FIRST_STEP = {"random": 2.0, "best": 0.5, "oblivious": 1.0}  # of an ascent from there, in eps
AVERAGED_STEPS = 0.5  # of the steps of other ascents: each costs five gradients
SQUARE_SHARE = 0.05  # of the pixels, in the first squares around a best point


@dataclass(frozen=True, kw_only=True)
class RoundSettings:
    """The fields of the attack, and eps."""

    norm: str
    eps: float
    steps: int
    targets: int
    queries: int
    rounds: int
    idle_rounds: int
    gain: float


@dataclass(kw_only=True)
class PersistentRounds:
    """The state of a search for all images of a batch."""

    settings: RoundSettings
    target: Target
    x: Tensor
    y: Tensor
    noise: Noise
    losses: dict[str, Loss]  # of LABEL_LOSSES, those that the number of classes allows
    paths: dict[str, Target]  # those that have not failed
    path_names: tuple[str, ...]
    worst: WorstPoints
    lowest: Tensor  # (b, paths): the smallest margin to which each gradient led by itself
    changed_in: Tensor  # (b,): the round in which the best point changed last
    broken_in: Tensor  # (b,): the round, 0 for images that were wrong at first, NEVER
    best_by: Tensor  # (b, 3): the numbers of the move that led to the best point
    broken_by: Tensor  # (b, 3): those of the move that broke the image
    right_after: list[Tensor]  # of each round, and of the clean images at first: (b,)
    oblivious: Tensor  # (b, c, h, w): where the ascents of a round start that start there
    rounds: int = 0  # that were made
    idle: int = 0  # how many of the last rounds broke next to nothing

    @classmethod
    def begin(
        cls,
        settings: RoundSettings,
        target: Target,
        x: Tensor,
        y: Tensor,
        noise: Noise,
        tries_every_gradient: bool,
    ) -> PersistentRounds:
        """Return the state before the first round."""
        paths = {DECLARED: target}
        if tries_every_gradient:
            paths = usable_paths(target, x, y, settings.eps, settings.norm)
        logits = target.logits(x)
        is_wrong = (logits.argmax(1) != y) & target.deterministic
        infinite = torch.full((len(x), len(paths)), torch.inf, dtype=x.dtype, device=x.device)
        nothing = torch.full((len(x), 3), NEVER, device=x.device)
        state = cls(
            settings=settings,
            target=target,
            x=x,
            y=y,
            noise=noise,
            losses={k: v for k, v in LABEL_LOSSES.items() if _has_classes(k, logits)},
            paths=dict(paths),
            path_names=tuple(paths),
            worst=WorstPoints(
                x_adv=start_at_eps(x, settings.eps, settings.norm, noise.fork("first")),
                margin=infinite[:, 0].clone(),
                is_wrong=is_wrong,
            ),
            lowest=infinite,
            changed_in=torch.zeros_like(y),
            broken_in=torch.where(is_wrong, 0, NEVER),
            best_by=nothing,
            broken_by=nothing.clone(),
            right_after=[],
            oblivious=x,
        )
        state.right_after.append(state._measure_right(x))
        return state

    def standing(self) -> Tensor:
        """Return the rows of the images that are still attacked: behind noise all of them."""
        rows = torch.arange(len(self.x), device=self.x.device)
        return rows[self.broken_in == NEVER] if self.target.may_drop else rows

    def is_over(self) -> bool:
        """Return True if nothing stands, nothing falls any more, or all rounds were made."""
        is_idle = self.idle >= self.settings.idle_rounds
        return is_idle or self.rounds >= self.settings.rounds or not len(self.standing())

    def run_round(self) -> None:
        """Make the next round."""
        self.rounds += 1
        self._climb_labels()
        self._climb_targets()
        self._climb_averages()
        self._search_squares()
        self._note_round()

    # Between rounds.

    def state(self) -> dict[str, Tensor]:
        """Return all that the next round depends on."""
        counts = [self.rounds, self.idle, *self.target.counts.values()]
        return {
            "counts": torch.tensor(counts),
            "right_after": torch.stack(self.right_after).cpu(),
            **{name: values.cpu() for name, values in self._tensors().items()},
        }

    def go_on_from(self, state: dict[str, Tensor]) -> None:
        """Take up a state; one of nothing changes nothing."""
        if not state:
            return
        self.rounds, self.idle, *counts = state["counts"].tolist()
        self.target.counts.update(zip(self.target.counts, counts, strict=True))
        self.right_after = list(state["right_after"].to(self.x.device))
        for name, values in self._tensors().items():
            values.copy_(state[name])

    def _tensors(self) -> dict[str, Tensor]:
        """Return the tensors that rounds change, by name."""
        return {
            "x_adv": self.worst.x_adv,
            "margin": self.worst.margin,
            "is_wrong": self.worst.is_wrong,
            "lowest": self.lowest,
            "changed_in": self.changed_in,
            "broken_in": self.broken_in,
            "best_by": self.best_by,
            "broken_by": self.broken_by,
        }

    def write_notes(self) -> None:
        """Say for each image when and by what it was broken, and how the search went."""
        self.target.notes.pop("wrong_after", None)  # of Square, of a part of the images
        ended = torch.full_like(self.y, ENDS.index(self._end()))
        self.target.note("broken_in_round", self.broken_in)
        self.target.note("broken_by", self.broken_by)
        self.target.note("right_after_round", torch.stack(self.right_after, 1).float())
        self.target.note("rounds", torch.full_like(self.y, self.rounds))
        self.target.note("ended", ended)

    def _end(self) -> str:
        if not len(self.standing()):
            return NOTHING_STANDS
        return IDLE if self.idle >= self.settings.idle_rounds else ALL_ROUNDS

    def _note_round(self) -> None:
        """Measure what the round has reached; behind noise by draws that have chosen nothing."""
        right = self._measure_right(self.worst.x_adv)
        newly = (right == 0) & (self.broken_in == NEVER)
        self._note_broken(newly.nonzero()[:, 0])
        fell = (self.right_after[-1] - right).double().sum()
        self.right_after.append(right)
        self.idle = self.idle + 1 if fell < self.settings.gain * len(self.x) else 0

    def _measure_right(self, x_adv: Tensor) -> Tensor:
        """Return the share of right draws of each image (b,); 0 or 1 of a deterministic target."""
        if self.target.deterministic:
            return (self.broken_in == NEVER).to(self.x.dtype)
        return judge_draws(self.target, x_adv, self.y, "after each round").right

    # The parts of a round.

    def _climb_labels(self) -> None:
        for number, (name, loss) in enumerate(self.losses.items()):
            start = STARTS[(number + self.rounds - 1) % len(STARTS)]
            if start == "oblivious":
                self._find_oblivious_points()
            for path in list(self.paths):
                move, rows = Move(path, name, start), self.standing()
                if len(rows):
                    self._climb(move, rows, loss)

    def _climb_targets(self) -> None:
        """Climb towards wrong classes from best points in odd rounds, from random ones in even."""
        start = "best" if self.rounds % 2 else "random"
        for path, rows in self._rows_by_path(BEST_PATHS):
            move = Move(path, "targets", start)
            self._make(move, rows, partial(self._ends_at_classes, move, rows))

    def _climb_averages(self) -> None:
        if not self.target.deterministic:
            return  # copies of a stochastic pipeline are averaged already
        for path, rows in self._rows_by_path(1):
            move = Move(path, "averaged margin", "best")
            self._climb(move, rows, negative_margin, AveragedAscent)

    def _search_squares(self) -> None:
        rows = self.standing()
        if not len(rows) or not self.settings.queries:
            return
        fields = {"queries": self.settings.queries, "p_init": SQUARE_SHARE}
        square = REGISTRY.create("attack", "square", norm=self.settings.norm, **fields)
        move, first = Move("none", "square", "best"), self.worst.x_adv[rows]
        target = self._fork(self.target, move, rows)
        noise = self._noise(move, rows)
        x_adv = square.search(target, self.x[rows], self.y[rows], self.settings.eps, noise, first)
        self._update(move, rows, x_adv)

    # Moves.

    def _climb(
        self, move: Move, rows: Tensor, loss: Loss, ascent_type: type[Ascent] = Ascent
    ) -> None:
        """Climb a loss of the labels of these images."""

        def find_ends() -> Tensor:
            target = self._fork(self.paths[move.gradient], move, rows)
            x, y, start = self.x[rows], self.y[rows], self._start(move, rows)
            return self._ascent(move, loss, ascent_type).run(target, x, y, y, start).best

        self._make(move, rows, find_ends)

    def _ends_at_classes(self, move: Move, rows: Tensor) -> Tensor:
        """Climb towards the likeliest wrong classes at the best points, side by side."""
        target, y = self._fork(self.paths[move.gradient], move, rows), self.y[rows]
        points = self.worst.x_adv[rows]
        wanted = likeliest_wrong_classes(target, points, y, self.settings.targets)
        n = wanted.shape[1]
        x, y = self.x[rows].repeat_interleave(n, 0), y.repeat_interleave(n)
        labels = torch.stack([y, wanted.flatten()], 1)
        start = self._start(move, rows, n)
        copies = target.copies(n)
        ends = self._ascent(move, targeted_margin).run(copies, x, labels, y, start, n).best
        return select_smallest_margin(copies, ends, y, n)

    def _make(self, move: Move, rows: Tensor, find_ends: Callable[[], Tensor]) -> None:
        """Keep what a move finds. Plain autograd that fails is given up: nobody declared it."""
        try:
            x_adv = find_ends()
        except Exception:
            if move.gradient not in AUTOGRAD_NAMES:
                raise
            del self.paths[move.gradient]
            self.lowest[:, self.path_names.index(move.gradient)] = torch.inf
            return
        self._update(move, rows, x_adv)

    def _ascent(self, move: Move, loss: Loss, ascent_type: type[Ascent] = Ascent) -> Ascent:
        share = AVERAGED_STEPS if ascent_type is AveragedAscent else 1
        return ascent_type(
            loss=loss,
            norm=self.settings.norm,
            eps=self.settings.eps,
            steps=math.ceil(share * self.settings.steps),
            first_step=FIRST_STEP[move.start],
        )

    def _start(self, move: Move, rows: Tensor, copies: int = 1) -> Tensor:
        """Return where the move starts: (b copies, c, h, w)."""
        noise, x = self._noise(move, rows).copies(copies), self.x[rows]
        if move.start == "oblivious":
            return self.oblivious[rows]
        x = x.repeat_interleave(copies, 0)
        if move.start == "random":
            return start_at_eps(x, self.settings.eps, self.settings.norm, noise)
        return self._best_points(x, rows.repeat_interleave(copies), noise)

    def _best_points(self, x: Tensor, rows: Tensor, noise: Noise) -> Tensor:
        """Return the best points, moved where an earlier round has found, and used, them."""
        best = self.worst.x_adv[rows]
        moved = moved_within(best, x, self.settings.eps, self.settings.norm, noise)
        is_old = self.changed_in[rows] < self.rounds
        return torch.where(is_old.view(-1, 1, 1, 1), moved, best)

    def _find_oblivious_points(self) -> None:
        """Find points that the bare classifier gets wrong, as far as one ascent finds them."""
        rows = self.standing()
        if not len(rows):
            return
        move = Move("none", "cross entropy", "oblivious")
        no_purifier = REGISTRY.create("defense", "none")
        bare = replace(self.target.through(None), purifier=no_purifier, scored=False)
        x, y, noise = self.x[rows], self.y[rows], self._noise(move, rows)
        start = start_at_eps(x, self.settings.eps, self.settings.norm, noise)
        ascent = self._ascent(move, cross_entropy)
        ends = ascent.run(self._fork(bare, move, rows), x, y, y, start).best
        self.oblivious = self.x.index_copy(0, rows, ends)

    def _noise(self, move: Move, rows: Tensor) -> Noise:
        return self.noise.take(rows).fork(self._name(move))

    def _fork(self, target: Target, move: Move, rows: Tensor) -> Target:
        """Return the pipeline of these images with draws that no other move has had."""
        return target.take(rows).fork(self._name(move))

    def _name(self, move: Move) -> str:
        return f"round {self.rounds}: {move}"

    # Results.

    def _update(self, move: Move, rows: Tensor, x_adv: Tensor) -> None:
        """Keep the points that are worse than the worst so far, and note what they broke."""
        target, y = self.target.take(rows), self.y[rows]
        margin, is_wrong = judge(target.fork(f"judge {self._name(move)}"), x_adv, y)
        self._credit(move, rows, margin)
        if self.target.deterministic:
            is_worse = self.worst.update(rows, x_adv, margin, is_wrong)
        else:
            best, name = self.worst.x_adv[rows], f"compare {self._name(move)}"
            is_worse = is_worse_behind_noise(target, x_adv, best, y, name)
            self.worst.replace(rows, x_adv, is_worse)
        changed = rows[is_worse]
        self.changed_in[changed] = self.rounds
        self.best_by[changed] = torch.tensor(move.numbers(), device=rows.device)
        if self.target.deterministic:
            is_broken = is_wrong | (margin < 0)
            self._note_broken(rows[is_broken & (self.broken_in[rows] == NEVER)])

    def _credit(self, move: Move, rows: Tensor, margin: Tensor) -> None:
        """Note what a gradient reaches by itself; from a best point, others have done the work."""
        if move.gradient in self.paths and move.start != "best":
            path = self.path_names.index(move.gradient)
            self.lowest[rows, path] = torch.minimum(self.lowest[rows, path], margin)

    def _note_broken(self, rows: Tensor) -> None:
        """Note that the best points of these images break them, and what led to these points."""
        self.broken_in[rows] = self.rounds
        self.broken_by[rows] = self.best_by[rows]

    def _rows_by_path(self, count: int) -> Iterator[tuple[str, Tensor]]:
        """Yield each gradient with the standing images of which it is among the best `count`."""
        best = self.lowest.argsort(dim=1, stable=True)[:, :count]
        for number, path in enumerate(self.path_names):
            rows = self.standing()
            rows = rows[(best[rows] == number).any(1)]
            if len(rows) and path in self.paths:
                yield path, rows


def _has_classes(loss: str, logits: Tensor) -> bool:
    return logits.shape[1] >= MIN_CLASSES.get(loss, 2)
