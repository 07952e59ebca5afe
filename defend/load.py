"""The one door from specs to objects."""

from __future__ import annotations

import sys
import types
from typing import Any

import torch

from defend.chain import Chain
from defend.dataset import Dataset
from defend.errors import BadParameter
from defend.purifier import Purifier, as_device
from defend.registry import REGISTRY, Kind
from defend.spec import Spec, parse, parse_single


def pick_device(device: str | None) -> torch.device:
    """The first GPU, where there is one, for "auto" and None. Raises BadParameter where the device is not there."""
    if device in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return as_device(str(device))


def load(
    spec: str | Spec | tuple[Spec, ...],
    kind: Kind = "defense",
    dataset: str | Dataset | None = None,
    device: str | torch.device | None = None,
    **more: Any,
) -> Any:
    """A defense (a chain too), attack, classifier or data set from its spec.

    dataset: what weights=auto looks for; given as an object, untrained components take its channels, size and classes.
    device: for defenses and classifiers; "auto" is the first GPU where there is one, the CPU is meant where none is given. Raises DefendError.
    """
    if not isinstance(spec, str | Spec | tuple):
        raise BadParameter(f"load({spec!r}): expected a spec, as 'jpeg:quality=60'")
    specs = (
        (spec,)
        if isinstance(spec, Spec)
        else parse(spec)
        if isinstance(spec, str) and kind == "defense"
        else spec
    )
    if isinstance(specs, str):
        specs = (parse_single(specs, kind),)
    if kind in ("attack", "dataset"):
        return REGISTRY.of_spec(kind, specs[0], **more)
    where = pick_device("auto") if device == "auto" else as_device(device or "cpu")
    if kind == "classifier":
        classifier = REGISTRY.of_spec(kind, specs[0], **_shape(kind, specs[0], dataset), **more)
        classifier.move(where)
        return classifier
    members: list[Purifier] = [
        REGISTRY.of_spec(kind, s, **_shape(kind, s, dataset), **(more if len(specs) == 1 else {}))
        for s in specs
    ]
    whole = members[0] if len(members) == 1 else Chain(members=tuple(members), **more)
    whole.move(where)
    return whole


def _shape(kind: Kind, spec: Spec, dataset: str | Dataset | None) -> dict[str, Any]:
    """What the data set decides for a learned component: the name for weights=auto, and the shape of an untrained one."""
    fields = getattr(REGISTRY.entry(kind, spec.name).load(), "__dataclass_fields__", {})
    given = dict(spec.params)
    out: dict[str, Any] = {}
    if "weights" in fields and "dataset" in fields and dataset is not None:
        out["dataset"] = dataset if isinstance(dataset, str) else dataset_name(dataset)
        if given.get("weights") == "untrained" and isinstance(dataset, Dataset):
            out |= {
                k: getattr(dataset, k)
                for k in ("channels", "size", "classes")
                if k in fields and k not in given
            }
    return out


def dataset_name(dataset: Dataset) -> str:
    """The registered name: what weights are labelled with."""
    return REGISTRY.component("dataset", type(dataset))


class _Door(types.ModuleType):
    """`defend.load` is a function of the package and the module it lives in; importing the module would hide the function."""

    __call__ = staticmethod(load)


sys.modules[__name__].__class__ = _Door
