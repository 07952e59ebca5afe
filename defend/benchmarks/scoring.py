"""Score images behind a defense: each draw is one purification and one forward pass.

The adversarial images of several eps are scored in one batch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from defend.benchmarks.purifier_checks import logits_after_purify, purify_once, rate_of
from defend.benchmarks.stopwatch import Stopwatch
from defend.noise import Noise
from defend.purifier import Purifier
from defend.tasks.classification import CLASSIFICATION
from defend.tasks.task import Deployed, Task

SELECT_DRAWS = 10  # on which worst cases are chosen; the `score` draws are for reading off
COMPARED_DRAWS = 4  # of a stochastic defense, of which at least two should differ


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The outcomes of images (b, c, h, w) behind one defense."""

    # Scores of the task, uint8 if 0 or 1: score (b, draws), and select (b, 10) if stochastic.
    outcomes: dict[str, Tensor]
    details: dict[str, Tensor]  # what the task says beside the score: (b, draws, ...)
    loss: float  # summed over images, mean over the score draws
    first_draw: Tensor  # the images as the first draw purified them
    first_logits: Tensor  # and their logits
    draws_differ: bool  # some pixel differs between draws
    seconds: float  # its share of the time of all that was scored with it


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """One range of images behind one defense."""

    purifier: Purifier
    network: nn.Module
    source: Tensor  # the clean images
    reference: Tensor  # of the task, a row for each image
    noise: Noise  # of the images, before it is forked
    draws: int
    task: Task = CLASSIFICATION
    # Score draw -> outputs of `source`, which several calls share; filled by the first that needs
    # them, and only at a task that compares them.
    clean_outputs: dict[int, Tensor] = field(default_factory=dict)

    def score(
        self, batches: Sequence[Tensor], stopwatch: Stopwatch, is_clean: bool = False
    ) -> list[Scores]:
        """Score several versions of the same images, each (b, c, h, w).

        stopwatch: measures purifying alone. is_clean: no attack has touched them. Raises
        BrokenPurifier.
        """
        draws_by_purpose = {"score": self.draws}
        if self.purifier.card.stochastic:
            draws_by_purpose["select"] = SELECT_DRAWS
        joined = _JoinedBatches(self, batches, stopwatch, is_clean)
        for purpose, draws in draws_by_purpose.items():
            for draw in range(draws):
                joined.add_draw(purpose, draw)
        return joined.split()

    def draw_noise(self, purpose: str, draw: int) -> Noise:
        """Return the noise of one draw."""
        return self.noise.fork(purpose).draw(draw)

    def clean_output(self, draw: int) -> Tensor:
        """Return what the pipeline gives for the clean images on a score draw."""
        if draw not in self.clean_outputs:
            noise = self.draw_noise("score", draw)
            self.clean_outputs[draw] = self.logits(self.purifier, self.source, noise)
        return self.clean_outputs[draw]

    def logits(self, purifier: Purifier, x: Tensor, noise: Noise) -> Tensor:
        """Return logits of images behind a purifier, which may be a fresh copy of this one."""
        return logits_after_purify(purifier, self.network, purify_once(purifier, x, noise))


class _JoinedBatches:
    """Several versions of the same images in one batch; all of them get the same noise."""

    def __init__(
        self, scorer: Scorer, batches: Sequence[Tensor], stopwatch: Stopwatch, is_clean: bool
    ) -> None:
        self.start = time.perf_counter()
        self.scorer, self.stopwatch, self.is_clean = scorer, stopwatch, is_clean
        self.count, self.size = len(batches), len(batches[0])
        self.x = torch.cat(list(batches))
        self.reference = torch.cat([scorer.reference] * self.count)
        self.image_of_row = torch.arange(self.size, device=self.x.device).repeat(self.count)
        self.outcomes: dict[str, list[Tensor]] = {}
        self.details: dict[str, list[Tensor]] = {}
        self.losses: list[Tensor] = []
        self.images: list[Tensor] = []
        self.first_logits: Tensor | None = None

    def add_draw(self, purpose: str, draw: int) -> None:
        """Purify and classify every image once."""
        scorer = self.scorer
        noise = scorer.draw_noise(purpose, draw).take(self.image_of_row)
        with self.stopwatch.measure(len(self.x)):
            images = purify_once(scorer.purifier, self.x, noise)
        logits = logits_after_purify(scorer.purifier, scorer.network, images)
        self.outcomes.setdefault(purpose, []).append(scorer.task.score(logits, self.reference))
        if purpose == "score":
            self.losses.append(scorer.task.loss(logits, self.reference).double())
            self._add_details(logits, draw)
        if len(self.images) < COMPARED_DRAWS:
            self.images.append(images)
        if self.first_logits is None:
            self.first_logits = logits

    def _add_details(self, output: Tensor, draw: int) -> None:
        """Keep what the task says of this draw beside the score."""
        scorer, clean_output = self.scorer, None
        if scorer.task.compares_clean_output:
            if self.is_clean:
                scorer.clean_outputs[draw] = output
            else:
                clean_output = torch.cat([scorer.clean_output(draw)] * self.count)
        deployed = Deployed(
            x=self.x,
            source=torch.cat([scorer.source] * self.count),
            output=output,
            clean_output=clean_output,
            reference=self.reference,
            rate=None if scorer.task.needs_classifier else rate_of(scorer.purifier, self.x),
            is_clean=self.is_clean,
        )
        for name, values in scorer.task.details(deployed).items():
            self.details.setdefault(name, []).append(values)

    def split(self) -> list[Scores]:
        """Return the scores of each version."""
        assert self.first_logits is not None
        outcomes, details = _stack_draws(self.outcomes), _stack_draws(self.details)
        losses = torch.stack(self.losses, 1).mean(1)
        seconds = (time.perf_counter() - self.start) / self.count
        scores = []
        for i in range(self.count):
            rows = slice(i * self.size, (i + 1) * self.size)
            scores.append(
                Scores(
                    outcomes={purpose: values[rows] for purpose, values in outcomes.items()},
                    details={name: values[rows] for name, values in details.items()},
                    loss=float(losses[rows].sum()),
                    first_draw=self.images[0][rows],
                    first_logits=self.first_logits[rows],
                    draws_differ=draws_differ_anywhere([images[rows] for images in self.images]),
                    seconds=seconds,
                )
            )
        return scores


def _stack_draws(values: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    """Return (n, draws, ...) of each list of draws (n, ...), on the host."""
    return {name: torch.stack(list(draws), 1).cpu() for name, draws in values.items()}


def draws_differ_anywhere(draws: Sequence[Tensor]) -> bool:
    """Return True if any draw differs from the one before it."""
    return any(not torch.equal(a, b) for a, b in pairwise(draws))
