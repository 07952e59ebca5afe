"""A network of the user as a classifier: any nn.Module that maps images to scores of classes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from defend.classifier import Classifier, ClassifierCard, Normalise
from defend.errors import BadParameter, BadWeights, Mismatch, count_of, one_line
from defend.files import user_path
from defend.hashing import tensor_sha256
from defend.learned import Frozen
from defend.object_hash import hash_or_unique
from defend.trained_on import TrainedOn
from defend.weights.third_party import fill_network

AS_GIVEN = "as-given"  # weights: those that the network has
SUM_TOLERANCE = 1e-3  # of probabilities
SMALLEST_PROBABILITY = 1e-30


class Logits(nn.Module):
    """The logits (b, classes) of a network, whatever it wraps them in.

    A tuple holds them first; a mapping or an object as "logits". One number for each image is the
    logit of class 1 of two classes. Of probabilities the logarithm is taken.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.gives_probabilities = False
        self.gives_one_number = False  # for each image, as of the last call

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits. Raise Mismatch if there are none."""
        scores = _find_scores(self.net(x))
        if scores.ndim == 1:
            scores = scores[:, None]
        if scores.ndim != 2 or len(scores) != len(x):
            raise Mismatch(
                f"{type(self.net).__name__}: expected logits of shape ({len(x)}, classes) for"
                f" {count_of(len(x), 'image')}, got {tuple(scores.shape)}; return logits"
            )
        if self.gives_probabilities:
            scores = _log_odds(scores)
        self.gives_one_number = scores.shape[1] == 1
        if self.gives_one_number:
            scores = torch.cat([torch.zeros_like(scores), scores], 1)
        return scores


def _find_scores(output: Any) -> Tensor:
    """Return the tensor in what a network returned. Raise Mismatch."""
    scores = output
    if isinstance(output, Mapping) and "logits" in output:
        scores = output["logits"]
    elif hasattr(output, "logits"):
        scores = output.logits
    elif isinstance(output, tuple | list) and output:
        scores = output[0]
    if not isinstance(scores, Tensor):
        raise Mismatch(
            f"expected logits, a tuple that begins with them, or an object with .logits, got"
            f" {type(output).__name__}; return logits"
        )
    return scores


def _log_odds(probabilities: Tensor) -> Tensor:
    """Return log p of each class (b, classes); log p - log(1 - p) of one probability (b, 1)."""
    logarithms = probabilities.clamp(min=SMALLEST_PROBABILITY).log()
    if probabilities.shape[1] > 1:
        return logarithms
    return logarithms - (1 - probabilities).clamp(min=SMALLEST_PROBABILITY).log()


def copy_network(module: nn.Module, label: str) -> nn.Module:
    """Return a copy of a network. Raise Mismatch if it cannot be copied."""
    try:
        return copy.deepcopy(module)
    except Exception as e:  # what a network holds may raise anything when it is copied
        raise Mismatch(
            f"{label}: expected a network that can be copied, got {type(e).__name__}:"
            f" {one_line(e)[:200]}; use torch.nn.utils.parametrizations.weight_norm in place of"
            " weight_norm, or leave out what cannot be copied"
        ) from None


def are_probabilities(scores: Tensor) -> bool:
    """Return True if all rows of scores (b, classes) are at least 0 and sum to 1.

    One column (b, 1) is probabilities if it lies in [0, 1].
    """
    if scores.shape[1] == 1:
        return bool(((scores >= 0) & (scores <= 1)).all())
    sums = scores.sum(1)
    return bool((scores >= 0).all() and ((sums - 1).abs() < SUM_TOLERANCE).all())


class OwnNetwork(Classifier):
    """Classify by a network of the user.

    module: it maps images (b, c, h, w) in [0, 1] to logits, see `Logits`. It is copied. label: its
    name in records. weights: a file of tensors (see `read_state_dict`), or those that the network
    has. mean, std: by which its pixels are normalised, one number or one for each channel, as in
    "0.485,0.456,0.406". Its image size and channels are those of the data set.
    """

    card = ClassifierCard(paper="none: a network of the user", licence="none: the user's own")
    _runtime = Classifier._runtime | {"module", "label", "code_modules", "code_hash"}
    module: nn.Module
    label: str
    code_modules: frozenset[str] = frozenset()  # of the user's files that define it
    code_hash: str = ""  # of the caller's object, "" where it is still to be taken
    weights: str = AS_GIVEN
    classes: int = 0  # 0: as many as the network gives
    mean: str | float = 0.0
    std: str | float = 1.0

    def validate(self) -> None:
        """Raise BadParameter unless there is a mean and a standard deviation for each channel."""
        self._numbers("mean")
        if not all(std > 0 for std in self._numbers("std")):
            raise BadParameter(f"{self.label}: std={self.std!r}: expected numbers above 0")

    def build(self) -> nn.Module:
        """Return the network with its weights and its normalisation."""
        return self._whole

    def _adopt(self) -> None:
        """Fill the network, and count its classes. Raise BadWeights, Mismatch, BadParameter."""
        self.file = None
        code_hash = self.code_hash
        if not self.code_modules:
            code_hash = code_hash or hash_or_unique(self.module, self.label)
        module = copy_network(self.module, self.label).cpu().float().eval()
        if self.weights == AS_GIVEN:
            state = {name: t for name, t in module.state_dict().items() if isinstance(t, Tensor)}
            loaded = {self.label: tensor_sha256(*state.values())}
        else:
            path = user_path(self.weights)
            if not path.is_file():
                raise BadWeights(
                    f"{self.label}: expected a file of weights, got weights={self.weights}, which"
                    " does not exist; check the path"
                )
            fill_network(module, path, path.name)
            loaded = {}
        self._code = {} if self.code_modules else {f"{self.label} (code)": code_hash}
        self._as_given = loaded
        logits = Logits(module)
        self._whole = nn.Sequential(Normalise(self._numbers("mean"), self._numbers("std")), logits)
        scores = self._try_out()
        if are_probabilities(scores[:, 1:] if logits.gives_one_number else scores):
            logits.gives_probabilities = True
            warnings.warn(
                f"{self.label}: the network returns probabilities, of which the logarithm is"
                " taken; return logits, whose gradients do not vanish",
                stacklevel=2,
            )
        self.classes = self.classes or scores.shape[1]
        if self.classes != scores.shape[1]:
            raise Mismatch(
                f"{self.label}: expected {self.classes} logits, as classes={self.classes} says,"
                f" got {scores.shape[1]}; return one logit for each class, or leave classes= out"
            )

    def _try_out(self) -> Tensor:
        """Return what the network gives for an example. Raise Mismatch for what it raises."""
        try:
            with torch.no_grad():
                scores: Tensor = self._whole(self.example(4))
        except Mismatch:
            raise
        except Exception as e:  # a network of the user may raise anything
            raise Mismatch(
                f"{self.label}: the network cannot take {self.channels}x{self.size}x{self.size}"
                f" images: {type(e).__name__}: {one_line(e)}; choose another data set, or resize"
                " in the network"
            ) from e
        return scores

    def _numbers(self, field: str) -> tuple[float, ...]:
        """Return one number for each channel. Raise BadParameter."""
        value = getattr(self, field)
        texts = value.split(",") if isinstance(value, str) else [value]
        try:
            numbers = [float(text) for text in texts]
        except ValueError:
            numbers = []
        if len(numbers) not in (1, self.channels):
            wanted = f"one number, or {self.channels} joined by commas in quotes"
            raise BadParameter(f"{self.label}: {field}={value!r}: expected {wanted}")
        return tuple(numbers) if len(numbers) > 1 else tuple(numbers * self.channels)

    @property
    def component(self) -> str:
        """The name by which the user knows the network: of a file or of an object."""
        return self.label

    def _advise(self, dataset: str) -> str:
        return "return one logit for each class, or choose another data set"

    def _build(self) -> Frozen:
        """Return the frozen network, and name in records what it was loaded from."""
        frozen = super()._build()
        self._loaded = {**self._loaded, **self._as_given, **self._code}
        return frozen

    @property
    def trained_on(self) -> tuple[TrainedOn, ...]:
        """Nobody but the user knows what the training knew."""
        return (TrainedOn(kind="unknown"),)
