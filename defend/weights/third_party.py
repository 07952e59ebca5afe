"""Networks and weights of other libraries: optional packages, plain state dicts, local folders and
the hub's cache.

Torch is imported only for tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from pkgutil import resolve_name
from types import ModuleType
from typing import TYPE_CHECKING, Any

from defend.errors import BadWeights, MissingPackage, one_line
from defend.files import user_path
from defend.weights.header import file_sha256

if TYPE_CHECKING:
    from torch import Tensor, nn

LISTED = 3  # names of tensors that an error lists
MAX_ERROR = 200  # characters of a foreign message that an error repeats
READ_ERRORS = (  # what torch raises for a file that holds anything but tensors
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    AttributeError,
    UnpicklingError,
)
# Keys below which checkpoints put tensors, and what wrappers write before the names of tensors.
# An average over the training comes last: it is read where there is nothing else.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "ema", "model_ema", "last")
PREFIXES = ("module.", "model.", "net.", "_orig_mod.")
# What keeps a library from reading pickles and from filling gaps with random numbers in silence.
STRICT_OPTIONS: dict[str, dict[str, Any]] = {
    "diffusers": {
        "use_safetensors": True,
        "output_loading_info": True,
        "low_cpu_mem_usage": False,  # True needs another package, accelerate
    },
    "transformers": {"use_safetensors": True, "output_loading_info": True},
}
CONFIGURATION = "config.json"  # hashed beside the weights
_TENSOR_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".tar", ".ckpt", ".pkl", ".pickle")
WEIGHTS_SUFFIXES = (*_TENSOR_SUFFIXES, ".npz", ".npy", ".h5", ".msgpack", ".onnx", ".gguf")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_ATTRIBUTE = "weights_sha256_of_defend"  # of a network: name of a file -> sha256


def import_extra(module: str, extra: str) -> ModuleType:
    """Return a module of an optional package.

    extra: what to type behind `pip install`, as in "my-plugin[diffusion]". Raise MissingPackage if
    the package, or one that it needs, is not installed.
    """
    try:
        # Not import_module: code_hash.py takes that for an import of anything in this package.
        return resolve_name(f"{module}:")  # type: ignore[no-any-return]
    except ModuleNotFoundError as e:
        missing = e.name or module
        needed = "" if missing.partition(".")[0] == module.partition(".")[0] else f" for {module}"
        raise MissingPackage(
            f"expected the package {missing}{needed}, which is not installed; type"
            f" `pip install '{extra}'`"
        ) from None
    except ImportError as e:
        raise MissingPackage(
            f"the package {module} cannot be imported ({one_line(e)[:MAX_ERROR]}); type"
            f" `pip install --upgrade '{extra}'`"
        ) from None


# Plain files.


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return tensors by name, from safetensors or from a pickle (.pt, .pth) of tensors alone.

    A checkpoint that holds the tensors under one of `WRAPPERS` is unwrapped, and "module.", which
    DataParallel and averages write before all names, is removed. Raise BadWeights for any other
    file.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return _unwrap(torch.load(path, map_location="cpu", weights_only=True))
    except (*READ_ERRORS, SafetensorError) as e:
        # torch advises to run what is in such a pickle, which is never the answer.
        is_pickle = isinstance(e, UnpicklingError)
        received = "a pickle of other objects, or a damaged one" if is_pickle else _describe(e)
        raise BadWeights(
            f"{path}: expected a file of tensors alone, got {received}; no code in a file is run:"
            " write it anew by torch.save(network.state_dict(), FILE)"
        ) from None


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)[:MAX_ERROR]}"


def _unwrap(checkpoint: Any) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint. Raise AttributeError if it is no mapping."""
    from torch import Tensor

    for key in WRAPPERS:
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    tensors = {name: value for name, value in checkpoint.items() if isinstance(value, Tensor)}
    tensors.pop("n_averaged", None)  # the counter of torch's AveragedModel
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def match_names(state: dict[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """Return the tensors under the names of a network, without the prefixes of wrappers.

    A prefix is removed if all names begin with it. The tensors are returned as they are if no way
    of doing so gives the wanted names.
    """
    renamed = state
    while set(renamed) != set(wanted):
        common = [p for p in PREFIXES if renamed and all(name.startswith(p) for name in renamed)]
        if not common:
            return state
        renamed = {name.removeprefix(common[0]): tensor for name, tensor in renamed.items()}
    return renamed


def fill_network(net: nn.Module, path: Path, name: str = "", advice: str = "") -> None:
    """Load a plain state dict into a network, which remembers the file's hash.

    name: how records and errors call the file, by default its path. advice: ends the error. Raise
    BadWeights if the file is no state dict of this network.
    """
    name = name or str(path)
    wanted = net.state_dict()
    state = match_names(read_state_dict(path), wanted)
    try:
        net.load_state_dict(state)
    except RuntimeError as e:
        raise BadWeights(
            f"{name}: does not fit {type(net).__name__}: {compare_states(state, wanted, e)}"
            f"; {advice or 'give weights of this network'}"
        ) from None
    _remember(net, {name: file_sha256(path)})


def compare_states(state: Mapping[str, Any], wanted: Mapping[str, Any], error: RuntimeError) -> str:
    """Return which names a file has too many and too few, or else which shapes differ.

    state: name -> tensor of the file. wanted: those of the network. error: what torch said.
    """
    extra = [name for name in state if name not in wanted]
    missing = [name for name in wanted if name not in state]
    if extra or missing:
        return f"the network wants {_list(missing)}, the file also has {_list(extra)}"
    differing = []
    for name, tensor in wanted.items():
        shapes = [tuple(t.shape) for t in (tensor, state[name]) if hasattr(t, "shape")]
        if len(set(shapes)) > 1:
            differing.append(f"{name} {shapes[0]}, the file {shapes[1]}")
    if differing:
        return f"the network wants {_list(differing, '; ')}"
    return one_line(error)[:MAX_ERROR]


def _list(names: Sequence[str], separator: str = ", ") -> str:
    """Return the first names, and how many others there are."""
    if not names:
        return "no other tensor"
    others = f" and {len(names) - LISTED} others" if len(names) > LISTED else ""
    return separator.join(names[:LISTED]) + others


# Folders and the hub's cache.


def load_pretrained(cls: Any, source: str | Path, **options: Any) -> nn.Module:
    """Return a network of diffusers, transformers, compressai or the like, with its weights.

    cls: a class with `from_pretrained`, or for a single file with `from_state_dict`. source: a
    local folder or file; or the name of a model on the hub ("owner/name"), which is downloaded only
    if it is not in the hub's cache. options: further arguments of `from_pretrained`, as `subfolder`
    or `revision`. Of diffusers and transformers safetensors alone are read, and weights that leave
    a layer without values are refused. Raise BadWeights.
    """
    path = user_path(source)
    if path.is_file():
        return _load_file(cls, path)
    if path.is_dir():
        return _load_folder(cls, path, path.name, options)
    if not _HUB_NAME.fullmatch(str(source)):
        raise BadWeights(
            f"{source}: expected a folder of weights for {cls.__name__}, got a path that does not"
            " exist; give the folder of a downloaded model"
        )
    return _load_from_hub(cls, str(source), options)


def loaded_weights(*networks: nn.Module) -> dict[str, str]:
    """Return the files that `load_pretrained` and `fill_network` loaded: name -> sha256."""
    modules = [module for network in networks for module in network.modules()]
    return merge_hashes(*(getattr(module, _ATTRIBUTE, {}) for module in modules))


def merge_hashes(*hashes: Mapping[str, str]) -> dict[str, str]:
    """Return all hashes in one mapping: name -> sha256.

    Other content under a name that is taken gets a number: "unit/model.pth (2)".
    """
    merged: dict[str, str] = {}
    for name, sha256 in (item for mapping in hashes for item in mapping.items()):
        free, number = name, 1
        while merged.setdefault(free, sha256) != sha256:
            number += 1
            free = f"{name} ({number})"
    return merged


def _remember(net: nn.Module, hashes: dict[str, str]) -> None:
    setattr(net, _ATTRIBUTE, hashes)


def _load_file(cls: Any, path: Path) -> nn.Module:
    """Return a network that finds its shape in a state dict, as those of compressai do."""
    if not hasattr(cls, "from_state_dict"):
        raise BadWeights(
            f"{path}: expected a folder for {cls.__name__}, got a file; give the folder that holds"
            " its config.json"
        )
    state = read_state_dict(path)
    net: nn.Module = _call_loader(cls, str(path), lambda: cls.from_state_dict(state))
    _remember(net, {path.name: file_sha256(path)})
    return net


def _load_folder(cls: Any, folder: Path, name: str, options: dict[str, Any]) -> nn.Module:
    """Return the network of a local folder. name: how records call it."""
    net = _from_pretrained(cls, str(folder), {"local_files_only": True, **options})
    _remember(net, _hash_folder(folder, name, options.get("subfolder") or ""))
    return net


def _hash_folder(folder: Path, name: str, subfolder: str) -> dict[str, str]:
    """Return name/file -> sha256 of the weights and of the configuration, in folders below too.

    Raise BadWeights if there are no weights.
    """
    files = sorted(path for path in (folder / subfolder).rglob("*") if path.is_file())
    weights = [path for path in files if path.suffix.lower() in WEIGHTS_SUFFIXES]
    if not weights:
        raise BadWeights(
            f"{folder / subfolder}: expected a file of weights to hash, got none of"
            f" {', '.join(WEIGHTS_SUFFIXES)}; rename the file, or give the folder that holds it"
        )
    hashed = [*weights, *(path for path in files if path.name == CONFIGURATION)]
    return {f"{name}/{path.relative_to(folder).as_posix()}": file_sha256(path) for path in hashed}


def _load_from_hub(cls: Any, name: str, options: dict[str, Any]) -> nn.Module:
    """Return a network from the hub's cache, into which it is downloaded if it is absent."""
    folder = find_in_cache(name, options)
    if folder is None:
        _from_pretrained(cls, name, options)
        folder = find_in_cache(name, options)
    if folder is None:
        raise BadWeights(
            f"{name}: expected config.json in the hub's cache, got none; give the folder of a"
            " downloaded model"
        )
    return _load_folder(cls, folder, name, options)


def find_in_cache(name: str, options: Mapping[str, Any]) -> Path | None:
    """Return the folder of the model in the hub's cache, or None if it is not there."""
    hub = import_extra("huggingface_hub", "huggingface_hub")
    subfolder = options.get("subfolder") or ""
    config = hub.try_to_load_from_cache(
        name,
        f"{subfolder}/config.json" if subfolder else "config.json",
        cache_dir=options.get("cache_dir"),
        revision=options.get("revision"),
    )
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    return folder.parent if subfolder else folder


def _from_pretrained(cls: Any, source: str, options: dict[str, Any]) -> nn.Module:
    """Return the network of `from_pretrained`. Raise BadWeights if a layer got no weights."""
    strict: dict[str, Any] = {}
    for base in cls.__mro__:
        strict |= STRICT_OPTIONS.get(base.__module__.partition(".")[0], {})
    loaded = _call_loader(cls, source, lambda: cls.from_pretrained(source, **strict, **options))
    if not isinstance(loaded, tuple):
        return loaded  # type: ignore[no-any-return]
    net, report = loaded
    gaps = [*report.get("missing_keys", ()), *report.get("mismatched_keys", ())]
    if gaps:
        raise BadWeights(
            f"{source}: expected weights for all of {cls.__name__}, got none that fit for"
            f" {len(gaps)} of its tensors, as {gaps[0]}; give the folder of this very model"
        )
    return net  # type: ignore[no-any-return]


def _call_loader(cls: Any, source: str, load: Callable[[], Any]) -> Any:
    """Return what a foreign loader returns. Raise BadWeights for whatever it raises.

    The global random generator stays where it is: loaders first fill a network with random numbers.
    """
    import torch

    try:
        with torch.random.fork_rng(devices=[]):
            return load()
    except Exception as e:  # a foreign loader may raise anything
        raise BadWeights(
            f"{source}: {cls.__name__} cannot be loaded from there: {type(e).__name__}:"
            f" {one_line(e)[:MAX_ERROR]}; give the folder, or the name on the hub, of such a model"
        ) from None
