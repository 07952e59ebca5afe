"""Classifiers that compare the embedding of an image with those of enrolled people.

New people need no training: the means of their embeddings become the gallery.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self, dataclass_transform

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.autocast_mode import is_autocast_available

from defend.classifier import Classifier
from defend.errors import BadParameter
from defend.folding import fold_batch_norms
from defend.learned import autocast, set_layout

CHUNK = 256  # images that are embedded together in an enrolment
NAMED = 3  # people that an error names


class EmbeddingNetwork(nn.Module):
    """Return logits scale * cosine(embedding, centre), one for the centre of each person.

    The rows of `gallery` (classes, d) are the centres; their lengths have no influence.
    """

    def __init__(self, embedder: nn.Module, gallery: Tensor, scale: float) -> None:
        super().__init__()
        self.embedder = embedder
        self.gallery = nn.Parameter(gallery)
        self.scale = scale

    def embed(self, x: Tensor) -> Tensor:
        """Return the embeddings float32 (b, d) of images x (b, c, h, w), of length 1."""
        return F.normalize(self.embedder(x).float(), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits float32 (b, classes) of images x (b, c, h, w)."""
        embeddings = self.embed(x)
        with float32_only(x.device):  # the 8 bits of bfloat16 are too few for a cosine
            return self.scale * F.linear(embeddings, F.normalize(self.gallery, dim=1))


def float32_only(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which nothing is cast to 16 bits."""
    if not is_autocast_available(device.type):  # as on "meta"
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


@dataclass_transform(kw_only_default=True, eq_default=False)
class EmbeddingClassifier(Classifier):
    """Abstract base of classifiers with a gallery of enrolled people.

    A subclass adds a `card`, a `recipe` and `build_embedder`. The logits are scale * cosine, so
    that their argmax identifies, and logits / scale are the scores of verification.
    """

    uses = frozenset({"scale"})
    embedding: int = 128  # length d of an embedding
    scale: float = 24.0  # logits are scale * cosine

    def validate(self) -> None:
        """Raise BadParameter if a field is outside its range."""
        self.require(self.embedding >= 1, "embedding", ">= 1")
        self.require(self.scale > 0, "scale", "> 0")

    @abstractmethod
    def build_embedder(self) -> nn.Module:
        """Return the untrained network from images (b, c, h, w) to embeddings (b, embedding) of
        any length.
        """

    def build(self) -> nn.Module:
        """Return the untrained network, with random centres."""
        gallery = F.normalize(torch.randn(self.classes, self.embedding), dim=1)
        return EmbeddingNetwork(self.build_embedder(), gallery, self.scale)

    @property
    def _embedding_network(self) -> EmbeddingNetwork:
        assert isinstance(self.network.net, EmbeddingNetwork)
        return self.network.net

    @property
    def gallery(self) -> Tensor:
        """The centres of the enrolled people, float32 (classes, d), of length 1."""
        return F.normalize(self._embedding_network.gallery.detach(), dim=1)

    def embed(self, x: Tensor) -> Tensor:
        """Return the embeddings float32 (b, d) of images x (b, c, h, w) in [0, 1], of length 1.

        They have a gradient to x if x requires one.
        """
        with autocast(x.device, self.network.precision):
            return self._embedding_network.embed(x)

    def run_as(self, precision: str, layout: str) -> None:
        """Prepare for many evaluations, as `Classifier.run_as`; the embedder alone is folded."""
        network = self._embedding_network
        example = self.example(2).to(network.gallery.device)
        embedder = fold_batch_norms(network.embedder, example)
        folded = EmbeddingNetwork(embedder, network.gallery.detach(), network.scale)
        self.network.net = folded.requires_grad_(False).eval()
        self.network.precision = precision
        set_layout(self.network, layout)

    def enrol(self, x: Tensor, y: Tensor, names: Sequence[str] = ()) -> Self:
        """Return a classifier of other people by the same network. Nothing is trained.

        x: images (n, c, h, w) in [0, 1]. y: int64 (n,), the person in each, 0, 1, 2... names: of
        the people; without names there are max(y) + 1. A centre is the mean of the person's
        embeddings. Raise BadParameter for images of another shape, fewer than two people, labels
        outside their range, and a person without a picture.
        """
        self._check_pictures(x, y, names)
        people = len(names) or int(y.max()) + 1
        device = self._embedding_network.gallery.device
        centres = torch.zeros(people, self.embedding, device=device)
        with torch.no_grad():
            for images, labels in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
                centres.index_add_(0, labels.to(device), self.embed(images.to(device)))
        return self.with_gallery(centres)

    def with_gallery(self, gallery: Tensor) -> Self:
        """Return a classifier by the same network with these centres (people, d).

        Raise BadParameter for fewer than two centres, another length d, and centres that are zero
        or not finite.
        """
        self._check_gallery(gallery)
        other = copy.copy(self)
        other.network = copy.deepcopy(self.network)
        centres = F.normalize(gallery.detach().to(other._embedding_network.gallery), dim=1)
        other._embedding_network.gallery = nn.Parameter(centres, requires_grad=False)
        other.classes = len(gallery)
        other.fitted_on = self.trained_on[0]
        other.started_from = self.file.sha256 if self.file else self.started_from
        other.file, other.weights = None, "untrained"
        return other

    def _check_pictures(self, x: Tensor, y: Tensor, names: Sequence[str]) -> None:
        """Raise BadParameter unless there is a picture of this size for each of two people."""
        shape = (self.channels, self.size, self.size)
        if x.ndim != 4 or tuple(x.shape[1:]) != shape or len(x) != len(y) or not len(x):
            raise BadParameter(
                f"enrol: expected images (n, {', '.join(map(str, shape))}) and n labels, got"
                f" {tuple(x.shape)} and {tuple(y.shape)}; load the pictures with size={self.size}"
            )
        people = len(names) or int(y.max()) + 1
        if int(y.min()) < 0 or int(y.max()) >= people:
            raise BadParameter(
                f"enrol: expected labels 0 to {people - 1}, got {int(y.min())} to {int(y.max())};"
                " give one name for each person"
            )
        missing = (torch.bincount(y, minlength=people) == 0).nonzero().flatten().tolist()
        if missing:
            labels = [names[k] if names else str(k) for k in missing[:NAMED]]
            dots = ", ..." if len(missing) > NAMED else ""
            raise BadParameter(
                f"enrol: expected a picture of each of {people} people, got none of"
                f" {', '.join(labels)}{dots}; add pictures, or leave these people out"
            )

    def _check_gallery(self, gallery: Tensor) -> None:
        """Raise BadParameter unless these are centres of two or more people."""
        if gallery.ndim != 2 or len(gallery) < 2 or gallery.shape[1] != self.embedding:
            raise BadParameter(
                f"gallery: expected (people, {self.embedding}) with two or more people, got"
                f" {tuple(gallery.shape)}; enrol people with this network: classifier.enrol(x, y)"
            )
        lengths = gallery.norm(dim=1)
        if not (lengths.isfinite() & (lengths > 0)).all():
            raise BadParameter(
                "gallery: expected finite centres that are not zero, got others; enrol people again"
            )
