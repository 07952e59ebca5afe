"""The training of embeddings: a margin between the cosine of the right person and all others."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from defend.training.recipes import ClassifierRecipe


class MarginRecipe(ClassifierRecipe):
    """Cross-entropy of s (cos theta_j - m [j is the right person]).

    Wang, Wang, Zhou, Ji, Gong, Zhou, Li, Liu, "CosFace: large margin cosine loss for deep face
    recognition", arXiv:1801.09414, equation 4. s is the field `scale` of the component, m is
    `margin`; the centres W_j of the paper are the rows of the gallery in training.
    """

    margin: float = 0.2

    def validate(self) -> None:
        super().validate()
        self.require(0 <= self.margin < 1, "margin", "0 <= margin < 1")

    def trainee(self, component: Any) -> nn.Module:
        """Return the network, and remember its scale."""
        self.scale: float = component.scale
        return super().trainee(component)

    def loss_of_logits(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the loss of logits (b, classes), s cos theta_j, for labels y (b,)."""
        right = F.one_hot(y, logits.shape[1]).to(logits.dtype)
        return super().loss_of_logits(logits - self.scale * self.margin * right, y)
