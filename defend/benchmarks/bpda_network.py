"""The learned gradient: one network for each purifier, classifier and data set, fitted once and kept in the user's cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from torch import nn

from defend import weights
from defend.benchmarks.components import Components, code_hash, component_key, packages_of
from defend.chain import members_of
from defend.errors import BadParameter, BadWeights
from defend.files import cache_folder
from defend.hashing import cache_key, tensor_sha256
from defend.learned import Frozen
from defend.purifier import Purifier
from defend.training.bpda_network import IMAGES, RECIPE, UNet, fit_bpda_network, share_of

VAL = 512  # images of 32x32 on which the error is measured; fewer larger ones
DEFAULT_EPS = 8 / 255  # where the data set has no claim eps


@dataclass(frozen=True)
class BPDANetwork:
    backward: nn.Module
    error: float  # |f(x) - purify(x)| / |purify(x) - x| on validation images, clean and perturbed
    sha256: str


def is_undefended(purifier: Purifier) -> bool:
    """Is there no purifier to imitate?"""
    return all(component_key(m, "defense")["component"] == "none" for m in members_of(purifier))


def bpda_network(components: Components, classifier: str, defense: str) -> BPDANetwork:
    """From memory, from the cache, or fitted now. Raises what the purifier raises, at every call."""
    kept, key = components.imitations, (classifier, defense)
    if key not in kept:
        try:
            kept[key] = _found_or_fitted(components, classifier, defense)
        except Exception as e:  # a purifier may raise anything: the cells that need this gradient fail, the others go on
            kept[key] = e
    if isinstance(found := kept[key], Exception):
        raise found
    return found  # type: ignore[no-any-return]


def bpda_network_hash(components: Components, classifier: str, defense: str) -> str:
    """For a key: the hash of the weights, or why there are none."""
    try:
        return bpda_network(components, classifier, defense).sha256
    except Exception as e:
        return f"{type(e).__name__}: {e}"[:500]


def fit_bpda_networks(
    pipelines: Sequence[tuple[str, str]], components: Components, say: Callable[[str], None]
) -> None:
    """By the parent, before any job is handed out: workers then find them in the cache."""
    for classifier, defense in dict.fromkeys(pipelines):
        if not _file(components, classifier, defense).exists():
            say(
                f"fitting a network to imitate {defense}, for its learned gradient: once, a minute or several"
            )
        bpda_network_hash(components, classifier, defense)


def _found_or_fitted(components: Components, classifier: str, defense: str) -> BPDANetwork:
    file = _file(components, classifier, defense)
    if not _sound(file):
        _fit(components, classifier, defense, file)
    net = UNet(components.data.channels, RECIPE["width"])
    net.load_state_dict(weights.load(file))
    return BPDANetwork(
        Frozen(net).to(components.device),
        weights.header(file).fields["relative_error"],
        weights.sha256(file),
    )


def _sound(file: Path) -> bool:
    """Is there a file that can be read? A damaged one is made again."""
    try:
        weights.header(file)
        weights.load(file)
    except BadWeights:
        return False
    return True


def check_cache(components: Components, classifier: str, defense: str) -> None:
    """Before minutes are spent on a fit: raises BadParameter where its weights could not be kept."""
    file = _file(components, classifier, defense)
    if file.exists():
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=file.parent):
            pass
    except OSError as e:
        raise BadParameter(
            f"{file}: the learned gradient cannot be kept there: {e.strerror}. Set XDG_CACHE_HOME to a folder that can be written."
        ) from None


def _fit(components: Components, classifier: str, defense: str, file: Path) -> None:
    check_cache(components, classifier, defense)
    x, y, *val = (t.to(components.device) for t in _images(components))
    purifier, eps = components.defense(defense), _eps(components)
    with torch.inference_mode(False), torch.enable_grad():
        net, error = fit_bpda_network(
            purifier,
            x,
            y,
            components.classifier(classifier).network,
            eps=eps,
            val=(val[0], val[1]),
            steps=RECIPE["steps"],
        )
    head = weights.Header(
        kind="imitation",
        component=str(component_key(purifier, "defense"))[:500],
        dataset=components.dataset_name,
        fields={"relative_error": error},
        trained_on=f"clean, and moved by {eps:.6g}",
        command="",
        seed=0,
        commit="",
    )
    weights.save(file, net.net.state_dict(), head)


def _file(components: Components, classifier: str, defense: str) -> Path:
    return (
        cache_folder()
        / "learned"
        / f"{cache_key(_made_of(components, classifier, defense))[:24]}.safetensors"
    )


def _made_of(components: Components, classifier: str, defense: str) -> dict[str, Any]:
    """All that decides the weights."""
    purifier, net = components.defense(defense), components.classifier(classifier)
    return {
        "purifier": component_key(purifier, "defense"),
        "classifier": component_key(net, "classifier"),
        "images": tensor_sha256(*_images(components)),
        "recipe": RECIPE,
        "eps": _eps(components),
        "precision": components.precision,
        "layout": components.layout,
        "device": components.device.type,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "code": {
            p: code_hash(p)
            for p in sorted(
                packages_of(purifier) | packages_of(net) | packages_of(components.data) | {"defend"}
            )
        },
    }


def _eps(components: Components) -> float:
    return components.data.card.claim.get("Linf", DEFAULT_EPS)


def _images(components: Components) -> tuple[torch.Tensor, ...]:
    """The first images of train and val, with their labels."""
    if components.fitting_images is None:
        first = components.data.rows("train", 0, 1)[0]
        counts = {"train": share_of(first, IMAGES), "val": share_of(first, VAL)}
        components.fitting_images = tuple(
            t
            for split, n in counts.items()
            for t in components.data.rows(split, 0, min(n, components.data.count(split)))
        )  # type: ignore[arg-type]
    return components.fitting_images
