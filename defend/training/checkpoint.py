"""Resume files: tensors as safetensors, the rest as JSON in its header. Never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn, optim

from defend.errors import BadParameter
from defend.files import whole

KEY = "defend.resume"
Tensors = dict[str, Tensor]


def save(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    with whole(path) as part:
        save_file(
            {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()},
            part,
            {KEY: json.dumps(about)},
        )


def load(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Raises BadParameter where the file is damaged or something else."""
    try:
        with safe_open(path, "pt") as f:
            return {name: f.get_tensor(name) for name in f.keys()}, json.loads(f.metadata()[KEY])  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as e:
        raise BadParameter(
            f"{path}: not a resume file ({type(e).__name__}: {e}). Delete it to start anew."
        ) from None


def check_same(path: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises BadParameter where the file belongs to another run."""
    if changed := [
        f"{k}={was.get(k)!r} there, {v!r} now" for k, v in now.items() if was.get(k) != v
    ]:
        raise BadParameter(
            f"{path}: belongs to another run: {'; '.join(changed)}. Delete it to start anew, or write elsewhere."
        )


def under(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {f"{prefix}.{name}": t for name, t in tensors.items()}


def beneath(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """The opposite of `under`."""
    return {
        name.removeprefix(prefix + "."): t
        for name, t in tensors.items()
        if name.startswith(prefix + ".")
    }


def optimiser_state(optimiser: optim.Optimizer, net: nn.Module) -> Tensors:
    """Momenta by the names of their parameters, since an index means nothing in another version of a network."""
    return {
        f"{name}:{key}": t
        for name, p in net.named_parameters()
        for key, t in optimiser.state.get(p, {}).items()
    }


def restore_optimiser(
    optimiser: optim.Optimizer, net: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """In the layout of the parameters: sums in another order round otherwise."""
    parameters = dict(net.named_parameters())
    for full, t in tensors.items():
        name, _, key = full.rpartition(":")
        p = parameters[name]
        optimiser.state[p][key] = (
            p.detach().clone().copy_(t) if t.shape == p.shape and key != "step" else t
        )
