"""The view that an attack has of a pipeline.

An attack may query and differentiate the pipeline as far as its access allows. Attacks never call
backward themselves. Here gradients are taken with respect to the images alone, cut to memory, and
averaged over EOT copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from defend.attack_state import StateFile
from defend.errors import BadParameter, BrokenAttack, Mismatch
from defend.noise import Noise
from defend.purifier import Backward, PlainAutograd, Purifier, Relaxed, straight_through
from defend.purifier_module import dtype_of
from defend.tasks.classification import CLASSIFICATION, Classification
from defend.tasks.targeted import TARGETED
from defend.tasks.task import Task

Access = Literal["gradient", "scores", "labels"]
Loss = Callable[[Tensor, Tensor], Tensor]  # output (b, ...), reference (b, ...) -> (b,)

# In training mode these move their running means by every query, or draw.
_CHANGED_BY_TRAINING = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
_FIRST_DRAW = torch.empty(0, dtype=torch.int64)  # a marker: draws are counted from zero


def _mean(sums: Sequence[Tensor], copies: int) -> Tensor:
    total: Tensor = sum(sums)  # type: ignore[assignment]  # sum() starts at the integer 0
    return total / copies


def _check_classifier(classifier: nn.Module) -> None:
    """Raise BadParameter for a network whose queries change it, or that has no usable gradient."""
    for tensor in (*classifier.parameters(), *classifier.buffers()):
        if tensor.is_inference():
            raise BadParameter(
                "Target: expected a classifier that can be differentiated, got one that was made"
                " under torch.inference_mode(); make or copy.deepcopy it outside"
            )
    if dtype_of(classifier) == torch.float16:
        raise BadParameter(
            "Target: expected a classifier in float32, bfloat16 or float64, got float16, in which"
            " small gradients become zero; call classifier.float()"
        )
    for module in classifier.modules():
        if module.training and isinstance(module, _CHANGED_BY_TRAINING):
            raise BadParameter(
                f"Target: expected a classifier in eval mode, got {type(module).__name__} in"
                " training mode, which each query would change; call classifier.eval()"
            )


def _no_counts() -> dict[str, int]:
    return {"forwards": 0, "backwards": 0}


@dataclass
class Target:
    """The pipeline classifier(purifier(x)).

    Its output are logits (b, classes). At a task without a classifier, the purified images
    themselves stand for them, (b, c, h, w), and the source images for the labels.

    An image's noise depends on its own calls alone, not on the rest of its batch.

    All its state stays on the device of the noise, so that no call waits for a GPU.
    """

    classifier: nn.Module
    purifier: Purifier
    noise: Noise
    backward: Backward | None = None  # None: the purifier's declared gradient
    eot: int = 1  # copies over which a stochastic purifier's gradient is averaged
    scored: bool = False  # True: this is exactly the pipeline that will be scored
    access: Access = "gradient"  # the most that the attacker may see, as its card declares
    task: Task = CLASSIFICATION  # what the attacker wants
    # network evaluations, one for each image and copy
    counts: dict[str, int] = field(default_factory=_no_counts)
    # values that an attack reports for each image; the harness stores them beside the outcomes
    notes: dict[str, Tensor] = field(default_factory=dict)
    # For an attack that goes on after an interruption: its file at an eps. None: nothing is stored.
    state_file: Callable[[float], StateFile] | None = field(default=None, repr=False)
    _drawn: Tensor = field(default=_FIRST_DRAW, repr=False)  # draws per image, shared by all take()
    _rows: Tensor = field(default=_FIRST_DRAW, repr=False)  # the rows of these images in _drawn

    def __post_init__(self) -> None:
        """Raise BadParameter for a classifier whose queries would change it, or differ."""
        if self._drawn is _FIRST_DRAW:
            _check_classifier(self.classifier)
            self._rows = torch.arange(len(self.noise), device=self.noise.device)
            self._drawn = torch.zeros_like(self._rows)

    @property
    def deterministic(self) -> bool:
        """True if two queries of an image give the same logits."""
        return not self.purifier.card.stochastic

    @property
    def may_drop(self) -> bool:
        """True if an attack may leave an image alone once it is broken.

        Elsewhere that falsifies the result: any blur cures an image that has only just crossed the
        boundary of a bare classifier, and one wrong draw of a stochastic purifier proves little.
        """
        return self.scored and self.deterministic and self.task.may_drop

    def toward_targets(self) -> Target:
        """Return the same pipeline for an attacker who wants the classes that he is given.

        Raise Mismatch at another task than classification.
        """
        if not isinstance(self.task, Classification):
            raise Mismatch(
                f"targeted=true: expected the task classification, got {self.task}; leave it out"
            )
        return replace(self, task=TARGETED)

    @property
    def drawn(self) -> Tensor:
        """How many draws each image of the whole batch has had: (n,), shared by all `take`."""
        return self._drawn

    def take(self, rows: Tensor) -> Target:
        """Return the same pipeline for some of the images, which continue with their draws."""
        return replace(self, noise=self.noise.take(rows), _rows=self._rows[rows])

    def through(self, backward: Backward | None) -> Target:
        """Return the same pipeline with this gradient of its purifier; None: the declared one."""
        return replace(self, backward=backward)

    def copies(self, n: int) -> Target:
        """Return n independent pipelines for each image, such as one for each restart.

        Those of one image are side by side.
        """
        return replace(self, noise=self.noise.copies(n), _drawn=_FIRST_DRAW, _rows=_FIRST_DRAW)

    def fork(self, name: str) -> Target:
        """Return the same pipeline at the first of draws of its own, as `Noise.fork` names them.

        The same name gives the same draws, so that two points can be compared behind them.
        """
        return replace(self, noise=self.noise.fork(name), _drawn=_FIRST_DRAW, _rows=_FIRST_DRAW)

    def again(self) -> Target:
        """Return the pipeline at its first draw, with counts of zero and without notes.

        Counts and notes are reset in place, because the harness reads these dictionaries.
        """
        self.counts.update(_no_counts())
        self.notes.clear()
        return replace(self, _drawn=_FIRST_DRAW, _rows=_FIRST_DRAW)

    def note(self, name: str, values: Tensor) -> None:
        """Store values (b, ...) for the harness, such as the query that broke each image.

        There is one row for each image of the attack.
        """
        self.notes[name] = values.detach()

    def loss(self, output: Tensor, reference: Tensor) -> Tensor:
        """Return the loss of the task, which an attack climbs: (b,)."""
        return self.task.loss(output, reference)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of one fresh draw of each image: (b, classes).

        With access "labels" it is the predicted class alone, one-hot.
        """
        first = self._advance(1)
        batches = self._slices(len(x), self.purifier.images_at_once(x))
        with torch.no_grad():
            logits = torch.cat([self._pipeline(x[rows], rows, first[rows]) for rows in batches])
        if self.access == "labels":
            return one_hot(logits.argmax(1), logits.shape[1]).to(logits.dtype)
        return logits

    def gradient(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """Return d loss / d x (b, c, h, w), loss (b,) and logits (b, classes).

        y: the labels (b, ...). All three are means over `eot` fresh draws. Raise BrokenAttack if
        the attack's card declares that it needs no gradient.
        """
        if self.access != "gradient":
            raise BrokenAttack(f'it asked for a gradient, and its card says access="{self.access}"')
        copies = 1 if self.deterministic else self.eot
        first = self._advance(copies)
        batch_size = max(1, self.purifier.images_at_once(x) // copies)
        batches = [
            self._batch_means(x[rows], y[rows], loss, rows, first[rows], copies)
            for rows in self._slices(len(x), batch_size)
        ]
        gradients, losses, logits = zip(*batches, strict=True)
        return torch.cat(gradients), torch.cat(losses), torch.cat(logits)

    def _batch_means(
        self, x: Tensor, y: Tensor, loss: Loss, rows: slice, first: Tensor, copies: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return gradient (b, c, h, w), loss (b,) and logits (b, classes) of a few images.

        All three are averaged over all copies. rows: where these images are in the noise. first:
        (b,), the number of the first draw of each image.
        """
        sums = [
            self._copy_sums(x, y, loss, rows, first + part.start, part.stop - part.start)
            for part in self._slices(copies, self.purifier.images_at_once(x))
        ]
        gradients, losses, logits = zip(*sums, strict=True)
        return _mean(gradients, copies), _mean(losses, copies), _mean(logits, copies)

    def _copy_sums(
        self, x: Tensor, y: Tensor, loss: Loss, rows: slice, first: Tensor, copies: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return gradient (b, c, h, w), loss (b,) and logits (b, classes), summed over copies.

        rows: where these images are in the noise; x and y are already cut to them. first: (b,), the
        number of the first draw of each image, of which `copies` follow.
        """
        # Under a caller's no_grad all gradients would be zero, and any defense would look robust.
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            logits = self._pipeline(leaf, rows, first, copies)
            losses = loss(logits, y.repeat_interleave(copies, 0))
            # A purifier may be detached from its input, in front of a classifier whose parameters
            # are not: then the gradient is zero, and flagged.
            if losses.requires_grad:
                gradient = torch.autograd.grad(losses.sum(), leaf, materialize_grads=True)[0]
            else:
                gradient = torch.zeros_like(leaf)
        self.counts["backwards"] += len(losses)
        loss_sums = losses.detach().unflatten(0, (len(x), copies)).sum(1)
        logit_sums = logits.detach().unflatten(0, (len(x), copies)).sum(1)
        return gradient, loss_sums, logit_sums

    def _pipeline(self, x: Tensor, rows: slice, first: Tensor, copies: int = 1) -> Tensor:
        """Return logits (b * copies, classes) of the draws first, first + 1, ... of each image.

        rows: where the images x are in the noise.
        """
        self.counts["forwards"] += len(x) * copies
        draws = first[:, None] + torch.arange(copies, device=first.device)
        noise = self.noise.take(rows).nth(draws)
        return self.classify(self.purified(x, noise, copies))

    def classify(self, purified: Tensor) -> Tensor:
        """Return the logits (b, classes) of purified images, in the type of the images.

        The network computes in the type of its parameters.
        """
        dtype = dtype_of(self.classifier) or purified.dtype
        logits: Tensor = self.classifier(purified.to(dtype))
        return logits.to(purified.dtype)

    def purified(self, x: Tensor, noise: Noise, copies: int = 1) -> Tensor:
        """Return purified images (b * copies, c, h, w), in the order of the rows of `noise`.

        The copies of one image are side by side. The identity or a network, as a stand-in for the
        gradient, has no noise: it is differentiated once for all copies, whose gradients add up
        before they reach it.
        """
        if not torch.is_grad_enabled():
            return self.purifier.purified(x.repeat_interleave(copies, 0), noise)
        if self.backward is None or isinstance(self.backward, Relaxed | PlainAutograd):
            return self.purifier.purified(x.repeat_interleave(copies, 0), noise, self.backward)
        value = self.purifier.purified(x.detach().repeat_interleave(copies, 0), noise)
        return straight_through(self.backward(x).repeat_interleave(copies, 0), value)

    def _advance(self, n: int) -> Tensor:
        """Reserve n draws for each image and return the number of the first: (b,)."""
        first = self._drawn[self._rows]
        self._drawn[self._rows] = first + n
        return first

    @staticmethod
    def _slices(n: int, size: int) -> list[slice]:
        """Return the slices of at most `size` that cover n rows; one empty slice for n = 0."""
        return [slice(start, min(start + size, n)) for start in range(0, max(n, 1), size)]
