"""Resume files: tensors as safetensors, everything else as JSON in the header. Never a pickle."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn, optim

from defend.errors import BadParameter
from defend.files import atomic_path

KEY = "defend.resume"  # the entry of the safetensors header that holds the state
Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The state of an interrupted run, apart from its tensors."""

    run: dict[str, Any]  # identifies the run: its recipe, data and number of parameters
    numerics: dict[str, str]  # the precision and the layout
    step: int
    seconds: float  # that earlier parts of the run took
    summed: int  # the number of losses in the running sum of this epoch
    best: float | None  # the best score on validation images, if the best epoch is kept
    classifiers: dict[str, str]  # name -> sha256, of those that took part so far
    loaded: dict[str, dict[str, str]]  # "kind spec" of a component that took part -> its files


@dataclass(frozen=True)
class Checkpoint:
    """The content of a resume file."""

    tensors: Tensors
    state: RunState


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a resume file that is complete or absent."""
    tensors = {
        name: t.detach().cpu().contiguous().clone() for name, t in checkpoint.tensors.items()
    }
    with atomic_path(path) as part:
        save_file(tensors, part, {KEY: json.dumps(asdict(checkpoint.state))})


def load_checkpoint(path: Path) -> Checkpoint:
    """Return the content of a resume file.

    Raises BadParameter if the file is damaged or is no resume file.
    """
    try:
        with safe_open(path, "pt") as f:
            names = list(f.keys())
            tensors = {name: f.get_tensor(name) for name in names}
            values = json.loads(f.metadata()[KEY])
            other_names = sorted(values.keys() ^ {field.name for field in fields(RunState)})
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as e:
        raise BadParameter(
            f"{path}: not a resume file ({type(e).__name__}: {e}); delete it to start from step 0"
        ) from None
    if other_names:
        raise BadParameter(_describe_other_version(path, other_names))
    return Checkpoint(tensors, RunState(**values))


def _describe_other_version(path: Path, names: Iterable[str]) -> str:
    """Return the error for a resume file that has other entries than this version writes."""
    return (
        f"{path}: expected a resume file of this recipe and of this version of defend, got one with"
        f" other entries ({', '.join(names)}); delete it to start from step 0"
    )


def check_same_run(path: Path, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raise BadParameter if the file at `path` was written by another run."""
    current = json.loads(json.dumps(current))  # as the file has it: lists in place of tuples
    other_options = sorted(saved.keys() ^ current.keys())
    if other_options:
        raise BadParameter(_describe_other_version(path, other_options))
    differences = [
        f"{name}={saved[name]!r} in the file, {name}={value!r} now"
        for name, value in current.items()
        if saved[name] != value
    ]
    if differences:
        raise BadParameter(
            f"{path}: expected a resume file of this run, got one of another run:"
            f" {'; '.join(differences)}; delete the file to start from step 0, or write elsewhere"
        )


def add_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors under the names `prefix.name`."""
    return {f"{prefix}.{name}": t for name, t in tensors.items()}


def select_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors whose names begin with `prefix.`, under the names without it."""
    start = f"{prefix}."
    return {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}


def optimiser_tensors(optimiser: optim.Optimizer, net: nn.Module) -> Tensors:
    """Return the optimiser's momenta under the names of their parameters.

    PyTorch numbers them, but a number means nothing in another version of a network.
    """
    tensors: Tensors = {}
    for name, parameter in net.named_parameters():
        for key, t in optimiser.state.get(parameter, {}).items():
            tensors[f"{name}:{key}"] = t
    return tensors


def restore_optimiser(
    optimiser: optim.Optimizer, net: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Put the momenta back, in the memory layout of their parameters.

    In another layout, sums would be computed in another order and would round differently.
    """
    parameters = dict(net.named_parameters())
    for full_name, t in tensors.items():
        name, _, key = full_name.rpartition(":")
        parameter = parameters[name]
        is_momentum = t.shape == parameter.shape and key != "step"
        if is_momentum:
            t = parameter.detach().clone().copy_(t)
        optimiser.state[parameter][key] = t
