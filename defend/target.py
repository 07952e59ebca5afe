"""What an attack sees: a pipeline to query and to differentiate, as far as its knowledge goes.

Attacks never call backward themselves: here gradients are taken for the images alone, cut to memory, averaged over copies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from defend.errors import BrokenAttack
from defend.noise import Noise
from defend.purifier import Backward, Purifier, straight_through

Access = Literal["gradient", "scores", "labels"]
Loss = Callable[[Tensor, Tensor], Tensor]  # logits (b, classes), labels (b, ...) -> (b,)


_NEW = torch.empty(0, dtype=torch.int64)  # stands for "from the first draw"


def _zeros() -> dict[str, int]:
    return {"forwards": 0, "backwards": 0}


@dataclass
class Target:
    """classifier(purifier(x)). An image's noise depends on its own calls alone, whatever its company.

    All its state stays on the device of the noise: nothing here waits for a GPU.
    """

    classifier: nn.Module
    purifier: Purifier
    noise: Noise
    backward: Backward | None = None  # None: the purifier's declared gradient
    eot: int = 1  # copies over which a stochastic purifier's gradient is averaged
    scored: bool = False  # is this exactly the pipeline that will be scored?
    access: Access = (
        "gradient"  # what the attacker may see; of a `query` number nothing else may be true
    )
    counts: dict[str, int] = field(
        default_factory=_zeros
    )  # network evaluations, one for each image and copy
    notes: dict[str, Tensor] = field(
        default_factory=dict
    )  # what an attack has to say of each image: the harness keeps it beside the outcomes
    _drawn: Tensor = field(
        default=_NEW, repr=False
    )  # draws used by each image; every take() shares it
    _rows: Tensor = field(default=_NEW, repr=False)  # our places in it

    def __post_init__(self) -> None:
        if self._drawn is _NEW:
            self._rows = torch.arange(len(self.noise), device=self.noise.device)
            self._drawn = torch.zeros_like(self._rows)

    @property
    def deterministic(self) -> bool:
        return not self.purifier.card.stochastic

    @property
    def may_drop(self) -> bool:
        """May an attack leave an image alone once it is wrong? Elsewhere that falsifies: any blur cures an image that has
        only just crossed the boundary of a bare classifier, and one wrong draw proves little."""
        return self.scored and self.deterministic

    def take(self, rows: Tensor) -> Target:
        """The same pipeline for fewer images, going on with their draws."""
        return replace(self, noise=self.noise.take(rows), _rows=self._rows[rows])

    def copies(self, n: int) -> Target:
        """n independent pipelines for each image, those of one image together: for restarts."""
        return replace(self, noise=self.noise.copies(n), _drawn=_NEW, _rows=_NEW)

    def again(self) -> Target:
        """From the first draw, and counting from zero (in the same `counts`, which the harness reads)."""
        self.counts.update(_zeros())
        self.notes.clear()
        return replace(self, _drawn=_NEW, _rows=_NEW)

    def note(self, name: str, values: Tensor) -> None:
        """values (b, ...): one row for each image that the attack was given, as the query at which it was broken."""
        self.notes[name] = values.detach()

    def logits(self, x: Tensor) -> Tensor:
        """One fresh draw of each image: (b, classes). To an attack of access "labels" the predicted class alone, as 0 and 1."""
        first = self._advance(1)
        with torch.no_grad():
            logits = torch.cat(
                [
                    self._pipeline(x[at], at, first[at])
                    for at in self._slices(len(x), self.purifier.max_batch)
                ]
            )
        return (
            one_hot(logits.argmax(1), logits.shape[1]).to(logits.dtype)
            if self.access == "labels"
            else logits
        )

    def gradient(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """Means over `eot` fresh draws: d loss / d x (b, c, h, w), loss (b,), logits (b, classes). y: (b, ...).

        Raises BrokenAttack where the attack's card says that it needs none.
        """
        if self.access != "gradient":
            raise BrokenAttack(f'it asked for a gradient, and its card says access="{self.access}"')
        copies = 1 if self.deterministic else self.eot
        first = self._advance(copies)
        parts = []
        for at in self._slices(len(x), max(1, self.purifier.max_batch // copies)):
            cuts = self._slices(copies, self.purifier.max_batch)
            sums = [
                self._sums(x[at], y[at], loss, at, first[at] + cut.start, cut.stop - cut.start)
                for cut in cuts
            ]
            parts.append([sum(column) / copies for column in zip(*sums, strict=True)])
        g, v, z = (torch.cat(column) for column in zip(*parts, strict=True))
        return g, v, z

    def _sums(
        self, x: Tensor, y: Tensor, loss: Loss, at: slice, first: Tensor, n: int
    ) -> list[Tensor]:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
        ):  # under a caller's no_grad all gradients would be zero, and any defense robust
            leaf = x.detach().clone().requires_grad_()
            logits = self._pipeline(leaf, at, first, n)
            values = loss(logits, y.repeat_interleave(n, 0))
            # a purifier may be detached from its input, before a classifier whose parameters are not: then the gradient is zero, and flagged
            slope = (
                torch.autograd.grad(values.sum(), leaf, materialize_grads=True)[0]
                if values.requires_grad
                else torch.zeros_like(leaf)
            )
        self.counts["backwards"] += len(values)
        return [slope, *(t.detach().unflatten(0, (len(x), n)).sum(1) for t in (values, logits))]

    def _pipeline(self, x: Tensor, at: slice, first: Tensor, copies: int = 1) -> Tensor:
        self.counts["forwards"] += len(x) * copies
        draw = first[:, None] + torch.arange(copies, device=first.device)
        logits: Tensor = self.classifier(self.purified(x, self.noise.take(at).nth(draw), copies))
        return logits

    def purified(self, x: Tensor, noise: Noise, copies: int = 1) -> Tensor:
        """noise: of b * copies rows, those of one image together, as what comes back.

        A stand-in has no noise of its own: it is differentiated once for all copies, whose gradients add up before they reach it.
        """
        if self.backward is None or not torch.is_grad_enabled():
            return self.purifier.purified(x.repeat_interleave(copies, 0), noise)
        value = self.purifier.purified(x.detach().repeat_interleave(copies, 0), noise)
        return straight_through(self.backward(x).repeat_interleave(copies, 0), value)

    def _advance(self, n: int) -> Tensor:
        first = self._drawn[self._rows]
        self._drawn[self._rows] = first + n
        return first

    @staticmethod
    def _slices(n: int, size: int) -> list[slice]:
        return [slice(start, min(start + size, n)) for start in range(0, max(n, 1), size)]
