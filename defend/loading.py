"""Turn specs into objects: the one place where components are met by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from defend.chain import Chain
from defend.classifier import Classifier
from defend.dataset import Dataset
from defend.errors import BadParameter
from defend.local_components import load_local
from defend.purifier import Purifier, check_device
from defend.registry import REGISTRY, Kind
from defend.spec import Spec, parse, parse_single


def pick_device(device: str | None) -> torch.device:
    """Return the device of that name; for "auto" and None the first GPU, or the CPU if there is no
    GPU.

    Raise BadParameter if this machine has no such device.
    """
    if device in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return check_device(str(device))


@torch.inference_mode(False)
def load(
    spec: str | Spec | tuple[Spec, ...],
    kind: Kind = "defense",
    dataset: str | Dataset | None = None,
    device: str | torch.device | None = None,
    **options: Any,
) -> Any:
    """Return the defense (or chain of defenses), attack, classifier or data set that a spec
    describes.

    dataset: the data set that `weights=auto` looks for; if it is an object, or a spec with fields
    such as "faces:size=64", untrained components take its channels, size and classes. device: for
    defenses and classifiers; None is the CPU, "auto" is the first GPU, or the CPU if there is none.
    options: further fields of the component; for a chain, fields of the chain. Those of each
    defense are clip_values=(low, high), the range of your pixels, by default (0, 1);
    channels_first=False for images (b, h, w, c); and seed, for the same noise at every call. Raise
    DefendError.
    """
    specs = _specs(spec, kind)
    if isinstance(dataset, str) and parse_single(dataset, "dataset").params:
        dataset = load(dataset, "dataset")
    if kind in ("attack", "dataset"):
        return _component(kind, specs[0], None, options)
    target_device = pick_device("auto") if device == "auto" else check_device(device or "cpu")
    component: Purifier | Classifier
    if kind == "defense" and len(specs) != 1:
        members = tuple(_component(kind, member, dataset, {}) for member in specs)
        component = Chain(members=members, **options)
    else:
        component = _component(kind, specs[0], dataset, options)
    component.move(target_device)
    return component


def _specs(spec: str | Spec | tuple[Spec, ...], kind: Kind) -> tuple[Spec, ...]:
    """Return the parsed members. Only a defense may be a chain. Raise BadSpec, BadParameter."""
    if isinstance(spec, Spec):
        return (spec,)
    if isinstance(spec, tuple):
        return spec
    if not isinstance(spec, str):
        raise BadParameter(f"load({spec!r}): expected a spec such as 'jpeg:quality=60'")
    return parse(spec) if kind == "defense" else (parse_single(spec, kind),)


def _component(
    kind: Kind, spec: Spec, dataset: str | Dataset | None, options: Mapping[str, Any]
) -> Any:
    if spec.file is not None and isinstance(dataset, str):
        dataset = load(dataset, "dataset")
    fields = {**_dataset_fields(kind, spec, dataset), **options}
    if spec.file is not None:
        return load_local(kind, spec, dataset, fields)
    return REGISTRY.of_spec(kind, spec, **fields)


def _dataset_fields(kind: Kind, spec: Spec, dataset: str | Dataset | None) -> dict[str, Any]:
    """Return the fields of a learned component that the data set decides.

    They are the data set's name, for `weights=auto`, and the shape of an untrained network.
    """
    annotated = getattr(REGISTRY.entry(kind, spec.name).load(), "__dataclass_fields__", {})
    if dataset is None or "weights" not in annotated or "dataset" not in annotated:
        return {}
    fields: dict[str, Any] = {}
    params = dict(spec.params)
    if "dataset" not in params:
        fields["dataset"] = dataset if isinstance(dataset, str) else dataset_name(dataset)
    if params.get("weights") == "untrained" and isinstance(dataset, Dataset):
        for name in ("channels", "size", "classes"):
            if name in annotated and name not in params:
                fields[name] = getattr(dataset, name)
    return fields


def dataset_name(dataset: Dataset) -> str:
    """Return the registered name of a data set, with which weights are labelled."""
    return REGISTRY.component("dataset", type(dataset))


def takes_size(spec: Spec) -> bool:
    """Return True if `size` is a field of this data set, so that its images can be scaled."""
    factory = REGISTRY.entry("dataset", spec.name).load()
    if not (isinstance(factory, type) and issubclass(factory, Dataset)):
        return False
    return "size" in factory.fields()
