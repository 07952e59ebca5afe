"""What attacks climb or descend: (logits (b, classes), labels (b,) or (b, 2)) -> (b,). z_y is the true class's logit."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from defend.errors import BadParameter

CLASSES = {
    "ce": 2,
    "dlr": 3,
    "dlr-targeted": 4,
}  # that a loss compares, by the name that attacks give it
TINY = 1e-12  # the guard of arXiv:2003.01690; avoids 0 / 0 where the highest logits are equal


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """In nats, for each image."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """z_y - max over i != y of z_i: below 0 where the image is wrong. Andriushchenko et al., arXiv:1912.00049, section 3."""
    return logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -float("inf")).amax(1)


def excess(logits: Tensor, y: Tensor) -> Tensor:
    """-margin: above 0 where the image is wrong, for whoever climbs. Its gradient does not fade where the classifier is sure."""
    return -margin(logits, y)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """-(z_y - max over i != y of z_i) / (z_1st - z_3rd): Croce, Hein, arXiv:2003.01690, eq. (6). Raises BadParameter below 3 classes.

    Neither shifting nor scaling the logits changes it, so it does not saturate where the cross entropy does.
    """
    _need("dlr", logits)
    return dlr_of_any(logits, y)


def dlr_of_any(logits: Tensor, y: Tensor) -> Tensor:
    """`dlr` that takes 2 classes too: z_2nd stands for z_3rd, which leaves -1 or 1, with no gradient. To look at, not to climb."""
    top = logits.topk(min(3, logits.shape[1]), 1).values
    return excess(logits, y) / (top[:, 0] - top[:, -1] + TINY)


def dlr_targeted(logits: Tensor, labels: Tensor) -> Tensor:
    """-(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2): arXiv:2003.01690, eq. (7). labels (b, 2): y, t. Raises BadParameter below 4 classes."""
    _need("dlr-targeted", logits)
    top = logits.topk(4, 1).values
    return difference(logits, labels) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + TINY)


def difference(logits: Tensor, labels: Tensor) -> Tensor:
    """z_t - z_y. labels (b, 2): y, t."""
    pair = logits.gather(1, labels)
    return pair[:, 1] - pair[:, 0]


def _need(loss: str, logits: Tensor) -> None:
    if logits.shape[1] < CLASSES[loss]:
        raise BadParameter(
            f"loss={loss} compares the {CLASSES[loss]} highest logits, and this classifier has {logits.shape[1]} classes: use loss=ce"
        )
