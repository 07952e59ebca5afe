"""What gradient attacks climb: (logits (b, classes), labels (b,)) -> (b,)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """In nats, for each image."""
    return F.cross_entropy(logits, y, reduction="none")
