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
from defend.benchmarks.digest import key_of, sha256_of
from defend.benchmarks.parts import Parts, code_sha256, identity_of, packages_of
from defend.chain import members_of
from defend.errors import BadParameter, BadWeights
from defend.files import cache_folder
from defend.learned import Frozen
from defend.purifier import Purifier
from defend.training.imitate import IMAGES, RECIPE, UNet, imitator, share_of

VAL = 512  # images of 32x32 on which the error is measured; fewer larger ones
DEFAULT_EPS = 8 / 255  # where the data set has no claim eps


@dataclass(frozen=True)
class Imitation:
    backward: nn.Module
    error: float  # |f(x) - purify(x)| / |purify(x) - x| on validation images, clean and perturbed
    sha256: str


def undefended(purifier: Purifier) -> bool:
    """Is there no purifier to imitate?"""
    return all(identity_of(m, "defense")["component"] == "none" for m in members_of(purifier))


def imitation(parts: Parts, classifier: str, defense: str) -> Imitation:
    """From memory, from the cache, or fitted now. Raises what the purifier raises, at every call."""
    kept, key = parts.imitations, (classifier, defense)
    if key not in kept:
        try:
            kept[key] = _found_or_fitted(parts, classifier, defense)
        except Exception as e:  # a purifier may raise anything: the cells that need this gradient fail, the others go on
            kept[key] = e
    if isinstance(found := kept[key], Exception):
        raise found
    return found  # type: ignore[no-any-return]


def identity_of_imitation(parts: Parts, classifier: str, defense: str) -> str:
    """For a key: the hash of the weights, or why there are none."""
    try:
        return imitation(parts, classifier, defense).sha256
    except Exception as e:
        return f"{type(e).__name__}: {e}"[:500]


def fit_all(pipelines: Sequence[tuple[str, str]], parts: Parts, say: Callable[[str], None]) -> None:
    """By the parent, before any job is handed out: workers then find them in the cache."""
    for classifier, defense in dict.fromkeys(pipelines):
        if not _file(parts, classifier, defense).exists():
            say(f"fitting a network to imitate {defense}, for its learned gradient: once, a minute or several")
        identity_of_imitation(parts, classifier, defense)


def _found_or_fitted(parts: Parts, classifier: str, defense: str) -> Imitation:
    file = _file(parts, classifier, defense)
    if not _sound(file):
        _fit(parts, classifier, defense, file)
    net = UNet(parts.data.channels, RECIPE["width"])
    net.load_state_dict(weights.load(file))
    return Imitation(Frozen(net).to(parts.device), weights.header(file).fields["relative_error"], weights.sha256(file))


def _sound(file: Path) -> bool:
    """Is there a file that can be read? A damaged one is made again."""
    try:
        weights.header(file)
        weights.load(file)
    except BadWeights:
        return False
    return True


def check_cache(parts: Parts, classifier: str, defense: str) -> None:
    """Before minutes are spent on a fit: raises BadParameter where its weights could not be kept."""
    file = _file(parts, classifier, defense)
    if file.exists():
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=file.parent):
            pass
    except OSError as e:
        raise BadParameter(f"{file}: the learned gradient cannot be kept there: {e.strerror}. Set XDG_CACHE_HOME to a folder that can be written.") from None


def _fit(parts: Parts, classifier: str, defense: str, file: Path) -> None:
    check_cache(parts, classifier, defense)
    x, y, *val = (t.to(parts.device) for t in _images(parts))
    purifier, eps = parts.defense(defense), _eps(parts)
    with torch.inference_mode(False), torch.enable_grad():
        net, error = imitator(purifier, x, y, parts.classifier(classifier).network, eps=eps, val=(val[0], val[1]), steps=RECIPE["steps"])
    head = weights.Header(
        kind="imitation", component=str(identity_of(purifier, "defense"))[:500], dataset=parts.dataset_name, fields={"relative_error": error},
        trained_on=f"clean, and moved by {eps:.6g}", command="", seed=0, commit="",
    )  # fmt: skip
    weights.save(file, net.net.state_dict(), head)


def _file(parts: Parts, classifier: str, defense: str) -> Path:
    return cache_folder() / "learned" / f"{key_of(_made_of(parts, classifier, defense))[:24]}.safetensors"


def _made_of(parts: Parts, classifier: str, defense: str) -> dict[str, Any]:
    """All that decides the weights."""
    purifier, net = parts.defense(defense), parts.classifier(classifier)
    return {
        "purifier": identity_of(purifier, "defense"), "classifier": identity_of(net, "classifier"), "images": sha256_of(*_images(parts)),
        "recipe": RECIPE, "eps": _eps(parts), "precision": parts.precision, "layout": parts.layout, "device": parts.device.type,
        "threads": torch.get_num_threads(), "torch": str(torch.__version__),
        "code": {p: code_sha256(p) for p in sorted(packages_of(purifier) | packages_of(net) | packages_of(parts.data) | {"defend"})},
    }  # fmt: skip


def _eps(parts: Parts) -> float:
    return parts.data.card.claim.get("Linf", DEFAULT_EPS)


def _images(parts: Parts) -> tuple[torch.Tensor, ...]:
    """The first images of train and val, with their labels."""
    if parts.fitting_images is None:
        first = parts.data.rows("train", 0, 1)[0]
        counts = {"train": share_of(first, IMAGES), "val": share_of(first, VAL)}
        parts.fitting_images = tuple(t for split, n in counts.items() for t in parts.data.rows(split, 0, min(n, parts.data.count(split))))  # type: ignore[arg-type]
    return parts.fitting_images
