"""Which classifier may classify a data set: its images, its classes, and what it was trained on."""

from __future__ import annotations

from typing import Any

import torch

from defend.classifier import Classifier
from defend.dataset import Dataset
from defend.errors import Mismatch, one_line
from defend.registry import REGISTRY
from defend.weights.zoo import is_same_component

NO_DATASETS = ("", "unknown")  # what the header of weights says whose training nobody knows


def check_pair(classifier: Classifier, data: Dataset) -> None:
    """Raise Mismatch unless the classifier fits the data set, and its weights are for it."""
    name = data.component
    if "labels" in data.fields() and 0 < data.classes < classifier.classes:
        raise Mismatch(
            f"classifier {classifier.component} has {classifier.classes} classes, the folder of"
            f" {name} has {data.classes}; say which of them these are: labels=imagenet, or"
            " labels=FILE.json with class_count=, in the spec of the data set"
        )
    classifier.check_fits(data.channels, data.size, data.classes, name)
    check_trained_for(classifier, name)


def check_trained_for(classifier: Classifier, dataset: str) -> None:
    """Raise Mismatch for weights of another data set, unless `any_dataset` says that they are
    meant.

    dataset: its registered name.
    """
    if classifier.any_dataset:
        return
    for weights, trained_for in find_other_data(classifier, dataset).items():
        raise Mismatch(
            f"classifier {classifier.component}: weights for {trained_for} ({weights}), data set"
            f" {dataset}; choose other weights, or pass any_dataset=true in the spec if these are"
            " meant"
        )


def find_other_data(component: Any, dataset: str) -> dict[str, str]:
    """Return the weights of a component that are for other images: name -> data set.

    There are none for a data set of the user's own images, whose name says nothing about them.
    """
    trained_for = getattr(component, "weights_dataset", "")
    if trained_for in NO_DATASETS or not has_known_images(dataset):
        return {}
    if is_same_component(trained_for, dataset):
        return {}
    return dict.fromkeys(component.own_weights, trained_for)


def has_known_images(dataset: str) -> bool:
    """Return True for the name of an installed data set that has the same images for everybody."""
    for entry in REGISTRY.entries("dataset"):
        if dataset in (entry.name, entry.full_name, entry.component):
            return not getattr(entry.load(), "own_images", False)
    return False


def check_logits(classifier: Classifier) -> None:
    """Raise Mismatch unless the network gives one logit for each of the classifier's classes."""
    name = classifier.component
    shape = (classifier.channels, classifier.size, classifier.size)
    device = next((p.device for p in classifier.net.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            logits = classifier.network(classifier.example(2).to(device))
    except Mismatch:
        raise
    except Exception as e:  # a network may raise anything
        raise Mismatch(
            f"classifier {name}: the network cannot take {'x'.join(map(str, shape))} images:"
            f" {type(e).__name__}: {one_line(e)}; mend the network, or choose another data set"
        ) from e
    if tuple(logits.shape) != (2, classifier.classes):
        raise Mismatch(
            f"classifier {name}: expected logits of shape (2, {classifier.classes}) for 2 images"
            f" of {classifier.classes} classes, got {tuple(logits.shape)}; return one logit for"
            " each class"
        )
