"""Weights of torchvision's models from files that `defend train` did not write."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import torch
import torchvision

from defend.errors import BadWeights, MissingData
from defend.trained_on import TrainedOn
from defend.weights.header import Header, WeightsFile, file_sha256, read_header

TIMEOUT = 10.0  # seconds without a byte until the hub counts as unreachable


def weight_names(model: str) -> list[str]:
    """Return torchvision's names of the weights of a model, DEFAULT included."""
    return list(torchvision.models.get_model_weights(model).__members__)


def fetch_hub_file(model: str, weights: str) -> Path:
    """Return torchvision's own file in torch's cache, downloading it if it is absent.

    Raises MissingData, naming the path and the address, if the download fails.
    """
    url: str = torchvision.models.get_model_weights(model)[weights].url
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name)
    if path.exists():
        return path
    match = re.search(r"-([0-9a-f]{8,})\.", path.name)
    sha256_prefix = match.group(1) if match else None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with socket_timeout(TIMEOUT):
            torch.hub.download_url_to_file(url, str(path), sha256_prefix, progress=False)
    except (OSError, RuntimeError) as e:
        raise MissingData(
            f"torchvision: expected weights {weights} of {model} in {path}, and they could not be"
            f" downloaded ({type(e).__name__}: {e}); fetch {url} to that path, or write"
            " weights=FILE"
        ) from None
    return path


@contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """Set the default timeout of sockets, and restore it afterwards."""
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(previous)


def external_weights(name: str, path: Path, dataset: str, trained_on: TrainedOn) -> WeightsFile:
    """Return a hashed file with the header that records need."""
    header = Header(
        kind="classifier",
        component="torchvision",
        architecture="torchvision",
        dataset=dataset,
        fields={},
        trained_on=trained_on,
        command="none: not trained here",
        seed=0,
        commit="",
    )
    return WeightsFile(name=name, path=path, sha256=file_sha256(path), header=header)


def has_header(path: Path) -> bool:
    """Return True if the file has a header that `defend train` wrote."""
    try:
        read_header(path)
    except BadWeights:
        return False
    return True
