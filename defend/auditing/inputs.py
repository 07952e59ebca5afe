"""The components that the caller names, checked and ready to run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from defend.auditing.context import LAYOUT, NORM, PRECISION
from defend.benchmarks.components import check_final_methods, check_trained
from defend.benchmarks.expand import check_shape
from defend.benchmarks.specs import component_text
from defend.chain import members_of
from defend.classifier import Classifier
from defend.dataset import Dataset, Split
from defend.eps import check_linf, parse_one_eps
from defend.errors import BadParameter, suggest_names
from defend.loading import load
from defend.pairing import check_logits, check_pair
from defend.purifier import Purifier
from defend.registry import REGISTRY

InputKind = Literal["defense", "classifier", "dataset"]

AUDITED_SPLITS = ("test", "val")  # classifiers and purifiers have seen the training images
_TYPES: dict[InputKind, type] = {
    "defense": Purifier,
    "classifier": Classifier,
    "dataset": Dataset,
}


def check_kind(value: object, kind: InputKind) -> None:
    """Raise BadParameter if the value is neither a spec nor an object of its kind."""
    expected = _TYPES[kind]
    if isinstance(value, str | expected):
        return
    if isinstance(value, type):
        received = f"the class {value.__name__}: give {value.__name__}()"
    else:
        received = f"{type(value).__name__} {value!r}"
    raise BadParameter(f"{kind}: expected a spec or a {expected.__name__} object, got {received}")


@dataclass(frozen=True)
class ComponentLoader:
    """Makes components from specs and objects, for one data set and device."""

    data: Dataset
    device: torch.device

    def defense(self, value: str | Purifier) -> Purifier:
        """Return the purifier. Raises DefendError if it cannot be audited on this data set."""
        purifier = cast(Purifier, self._load(value, "defense"))
        check_shape(purifier, self.data, value if isinstance(value, str) else type(value).__name__)
        return purifier

    def classifier(self, value: str | Classifier) -> Classifier:
        """Return the classifier. Raises DefendError if it does not fit the data set."""
        classifier = cast(Classifier, self._load(value, "classifier"))
        check_pair(classifier, self.data)
        check_logits(classifier)
        return classifier

    def _load(self, value: Any, kind: Literal["defense", "classifier"]) -> Any:
        check_kind(value, kind)
        if not isinstance(value, str):
            check_no_seed(value)
            check_final_methods(value)
            value.move(self.device)
            return value
        component = load(component_text(value, kind), kind, self.data, self.device)
        check_no_seed(component)
        check_final_methods(component)
        check_trained(component, value)
        component.run_as(PRECISION, LAYOUT)
        return component


def check_no_seed(component: Any) -> None:
    """Raise BadParameter if a purifier, or a member of a chain, has a fixed seed."""
    for member in members_of(component):
        if member is not component:
            check_no_seed(member)
    seed = getattr(component, "seed", None)  # a classifier has no such field
    if seed is not None:
        raise BadParameter(
            f"{type(component).__name__}: expected no seed, got seed={seed}; an audit gives each"
            " image noise of its own: leave the seed out"
        )


def load_rows(data: Dataset, split: str, n: int, is_requested: bool) -> tuple[Tensor, Tensor]:
    """Return the first n images of a split with their labels.

    is_requested: the caller asked for n, so that fewer images are an error. Otherwise all images
    are returned if the split has fewer. Raises BadParameter for a split that cannot be audited.
    """
    if split not in AUDITED_SPLITS:
        raise BadParameter(
            f"split {split!r}: expected {' or '.join(AUDITED_SPLITS)}."
            f"{suggest_names(split, AUDITED_SPLITS)}"
        )
    name = cast(Split, split)
    return data.rows(name, 0, n if is_requested else min(n, data.count(name)))


def parse_eps(eps: float | str | None, data: Dataset) -> float:
    """Return the eps of the audit, by default the data set's claim eps. Raises BadParameter."""
    if eps is None:
        return _claim_eps(data)
    if isinstance(eps, str) and ("," in eps or ":" in eps):
        raise BadParameter(
            f"eps {eps}: expected one number, as 0.1 or 8/255: an audit is at one eps"
        )
    parsed = parse_one_eps(eps)
    check_linf(parsed)
    if parsed.value <= 0:
        raise BadParameter(f"eps {eps}: expected a number above 0, as 0.1 or 8/255")
    return parsed.value


def _claim_eps(data: Dataset) -> float:
    if NORM not in data.card.claim:
        raise BadParameter(
            f"data set {type(data).__name__} has no claim eps for {NORM}: give --eps"
        )
    return float(data.card.claim[NORM])


def describe(value: Any, kind: InputKind) -> str:
    """Return the spec, or for an object its name with its settings."""
    if isinstance(value, str):
        return value
    name = REGISTRY.component(kind, type(value))
    settings = ",".join(
        f"{key}={setting}"
        for key, setting in value.settings.items()
        if isinstance(setting, int | float | str | bool)
    )
    return f"{name}:{settings}" if settings else name
