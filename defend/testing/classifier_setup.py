"""The images, the data and the measurements that the checks of classifiers share."""

from __future__ import annotations

from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from defend.classifier import Classifier
from defend.dataset import Dataset, Split
from defend.errors import BrokenPlugin, DefendError
from defend.loading import load, takes_size
from defend.noise import Noise
from defend.purifier import Card, Purifier
from defend.spec import parse_single
from defend.testing.edge_images import edge_images
from defend.testing.runner import NotApplicable

REAL_IMAGES = 300


class Dimmed(Purifier):
    """x' = 0.9 x, a PyTorch preprocessor for ART."""

    card = Card(paper="none: for the check alone", gradient="exact", stochastic=False)

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return x * 0.9


def logits(c: Classifier, x: Tensor) -> Tensor:
    """Return the logits (b, classes) without a gradient."""
    with torch.no_grad():
        z: Tensor = c.network(x)
    return z


def random_and_edge_images(c: Classifier) -> Tensor:
    """Return random images, then black, white, a checkerboard and one hot pixel."""
    return torch.cat([c.example(), edge_images(c.example())])


def logits_projection(c: Classifier, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return a weighted sum of the logits, and the copy of x that requires its gradient.

    The sum saturates nowhere, so its gradient is zero only if x does not reach the logits.
    """
    x = x.clone().requires_grad_()
    weights = torch.randn(c.classes, generator=torch.Generator().manual_seed(1))
    return (c.network(x) @ weights).sum(), x


def dataset_of_weights(c: Classifier) -> Dataset:
    """Return the data set that the weights were trained on, at the size of the classifier.

    Raise NotApplicable if there are no weights or no data. Raise BrokenPlugin if the data set is
    installed but cannot be imported.
    """
    file = c.file
    if file is None:
        raise NotApplicable("no weights of a training by defend say which data set they are for")
    try:
        spec = parse_single(file.header.dataset, "dataset")
        options: dict[str, Any] = {}
        if takes_size(spec) and "size" not in dict(spec.params):
            options["size"] = c.size
        dataset: Dataset = load(spec, "dataset", **options)
        dataset.count("test")  # raises MissingData here, where it can be told from a failed check
    except BrokenPlugin:
        raise  # it is a fault of the installation, not the absence of data
    except DefendError as e:
        raise NotApplicable(
            f"weights {file.name} name the data set {file.header.dataset!r}: {e}"
        ) from None
    return dataset


def predicted_and_true_labels(c: Classifier, data: Dataset, split: Split) -> tuple[Tensor, Tensor]:
    """Return the labels of the first images of a split: predicted and true."""
    x, y = data.rows(split, 0, min(REAL_IMAGES, data.count(split)))
    return torch.cat([logits(c, batch).argmax(1) for batch in x.split(50)]), y


def classifier_in_art(c: Classifier, preprocessor: Any) -> PyTorchClassifier:
    """Return ART's classifier of the network, behind a preprocessor or None."""
    return PyTorchClassifier(
        c.network,
        torch.nn.CrossEntropyLoss(),
        (c.channels, c.size, c.size),
        c.classes,
        clip_values=(0.0, 1.0),
        preprocessing_defences=preprocessor,
        device_type="cpu",
    )


def rebuilt(c: Classifier, **changed: Any) -> Classifier:
    """Return a classifier with the same settings, except those that are given."""
    return type(c)(**{**c.settings, **changed})


def refusal(c: Classifier, weights: str) -> str:
    """Return the error with which the classifier refuses weights.

    Raise AssertionError if it takes them, or raises anything but an error of defend.
    """
    try:
        rebuilt(c, weights=weights)
    except DefendError as e:
        return str(e)
    except Exception as e:
        raise AssertionError(
            f"weights={weights}: expected an error of defend, got {type(e).__name__}: {e}"
        ) from e
    raise AssertionError(f"weights={weights}: expected an error, got a classifier")
