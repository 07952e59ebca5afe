"""The losses that attacks climb or descend: (logits (b, classes), labels (b,) or (b, 2)) -> (b,).

z_i is the logit of class i, z_y that of the true class, z_1st that of the highest, and so on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from defend.errors import BadParameter

# The number of classes that a loss compares, by the name that attacks give to the loss.
MIN_CLASSES = {"ce": 2, "dlr": 3, "dlr-targeted": 4}
TINY = 1e-12  # as in arXiv:2003.01690: avoids 0 / 0 where the highest logits are equal


def whole_labels(y: Tensor, shape: tuple[int, ...] | None = None, classes: int = 0) -> Tensor:
    """Return the labels y as int64. Raise BadParameter unless they are whole and of this shape.

    One-hot labels and probabilities are refused: losses would run on them, and mean something else.
    classes: labels from this number on are refused, too, except on a GPU, which would have to be
    waited for.
    """
    is_whole = not y.is_floating_point() and not y.is_complex() and y.dtype != torch.bool
    if not is_whole or (shape is not None and tuple(y.shape) != shape):
        expected = "" if shape is None else f" of shape {shape}"
        hint = "; write y.argmax(1)" if y.ndim == 2 else ""
        raise BadParameter(f"expected whole labels{expected}, got {y.dtype} {tuple(y.shape)}{hint}")
    if classes and y.numel() and y.device.type == "cpu":
        low, high = (int(label) for label in y.aminmax())
        if low < 0 or high >= classes:
            raise BadParameter(
                f"expected labels from 0 to {classes - 1}, as there are {classes} logits, got {low}"
                f" to {high}; give labels of the classes of this network"
            )
    return y.long()


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross entropy of each image, in nats."""
    return F.cross_entropy(
        logits, whole_labels(y, (len(logits),), logits.shape[1]), reduction="none"
    )


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return z_y - max over i != y of z_i, negative for misclassified images.

    Source: Andriushchenko et al., arXiv:1912.00049, section 3.
    """
    y = whole_labels(y, (len(logits),), logits.shape[1])
    true_logit = logits.gather(1, y[:, None])[:, 0]
    best_other = logits.scatter(1, y[:, None], -float("inf")).amax(1)
    return true_logit - best_other


def negative_margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return -margin, positive for misclassified images: a loss to climb whose gradient does not
    fade at high confidence.
    """
    return -margin(logits, y)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Return -(z_y - max over i != y of z_i) / (z_1st - z_3rd).

    Raise BadParameter below 3 classes.

    Shifting or scaling the logits does not change it, so that it does not saturate where the cross
    entropy does. Source: Croce, Hein, arXiv:2003.01690, eq. (6).
    """
    _require_classes("dlr", logits)
    return dlr_any_classes(logits, y)


def dlr_any_classes(logits: Tensor, y: Tensor) -> Tensor:
    """Return `dlr`, for 2 classes too: there z_2nd replaces z_3rd, and the value is -1 or 1 without
    a gradient.

    It serves as a measure, not as a loss to climb.
    """
    top = logits.topk(min(3, logits.shape[1]), 1).values
    return negative_margin(logits, y) / (top[:, 0] - top[:, -1] + TINY)


def dlr_targeted(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2), labels (b, 2): the classes y and t.

    Raise BadParameter below 4 classes.

    Source: Croce, Hein, arXiv:2003.01690, eq. (7).
    """
    _require_classes("dlr-targeted", logits)
    top = logits.topk(4, 1).values
    return targeted_margin(logits, labels) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + TINY)


def targeted_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return z_t - z_y, labels (b, 2): the classes y and t."""
    pair = logits.gather(1, whole_labels(labels, (len(logits), 2), logits.shape[1]))
    return pair[:, 1] - pair[:, 0]


def _require_classes(loss: str, logits: Tensor) -> None:
    classes, needed = logits.shape[1], MIN_CLASSES[loss]
    if classes < needed:
        raise BadParameter(
            f"loss={loss}: expected at least {needed} classes, whose logits it compares, "
            f"got a classifier of {classes}; use loss=ce"
        )
