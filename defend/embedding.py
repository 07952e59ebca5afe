"""Classifiers that compare the embedding of an image with those of enrolled people.

New people need no training: their embeddings are averaged into a gallery.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Self, dataclass_transform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defend.classifier import Classifier
from defend.errors import BadParameter
from defend.folding import fold_batch_norms
from defend.learned import Frozen, set_layout

CHUNK = 256  # images that are embedded together


class EmbeddingNetwork(nn.Module):
    """Return scale * cosine(embedding, centre) for the centre of each enrolled person.

    The rows of `gallery` (classes, d) are the centres; their lengths have no influence.
    """

    def __init__(self, embedder: nn.Module, gallery: Tensor, scale: float) -> None:
        super().__init__()
        self.embedder = embedder
        self.gallery = nn.Parameter(gallery)
        self.scale = scale

    def embed(self, x: Tensor) -> Tensor:
        """Return the embeddings (b, d) of images x (b, c, h, w), of length 1."""
        return F.normalize(self.embedder(x).float(), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (b, classes) of images x (b, c, h, w)."""
        return self.scale * F.linear(self.embed(x), F.normalize(self.gallery, dim=1))


@dataclass_transform(kw_only_default=True, eq_default=False)
class EmbeddingClassifier(Classifier):
    """Abstract base of classifiers with a gallery of enrolled people.

    A subclass adds a `card`, a `recipe` and `build_embedder`.
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
