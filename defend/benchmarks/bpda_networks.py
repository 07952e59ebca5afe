"""The learned gradient: a network fitted to imitate a purifier, whose gradient replaces its own.

One network for each purifier, classifier and data set, fitted once and kept in the user's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from defend.benchmarks.code_hash import hash_packages
from defend.benchmarks.component_keys import component_key, modules_of, optional_versions
from defend.dataset import Split
from defend.errors import BadParameter, BadWeights
from defend.files import cache_folder
from defend.hashing import cache_key, tensor_sha256
from defend.learned import Frozen
from defend.trained_on import TrainedOn
from defend.training.bpda_network import (
    IMAGES,
    RECIPE,
    UNet,
    fit_bpda_network,
    images_of_equal_cost,
)
from defend.training.data import choose_fitting_split, fitting_images
from defend.weights.header import (
    Header,
    file_sha256,
    load_tensors,
    read_header,
    save_weights,
)

if TYPE_CHECKING:
    from defend.benchmarks.components import Components

VAL_IMAGES = 512  # of 32x32, on which the error is measured; fewer larger ones
DEFAULT_EPS = 8 / 255  # for a data set without a claim eps


@dataclass(frozen=True)
class BPDANetwork:
    """A fitted network."""

    backward: nn.Module
    error: float  # |f(x) - purify(x)| / |purify(x) - x| on validation images, clean and perturbed
    sha256: str


class BPDANetworks:
    """The networks for the components of one run; kept in memory, in the cache, or fitted."""

    def __init__(self, components: Components) -> None:
        self._components = components
        self._results: dict[tuple[str, str], BPDANetwork | Exception] = {}
        self._fitting_images: tuple[Tensor, ...] | None = None

    def get(self, classifier: str, defense: str) -> BPDANetwork:
        """Return the network for a defense before a classifier, both as specs.

        Raises what the purifier raised when the network was fitted, at every call.
        """
        pipeline = (classifier, defense)
        if pipeline not in self._results:
            try:
                self._results[pipeline] = self._load_or_fit(classifier, defense)
            except Exception as e:  # a purifier may raise anything; other cells go on
                self._results[pipeline] = e
        result = self._results[pipeline]
        if isinstance(result, Exception):
            raise result
        return result

    def hash(self, classifier: str, defense: str) -> str:
        """Return the hash of the network's weights for a key, or why there are none."""
        try:
            return self.get(classifier, defense).sha256
        except Exception as e:
            return f"{type(e).__name__}: {e}"[:500]

    def fit_all(self, pipelines: Sequence[tuple[str, str]], say: Callable[[str], None]) -> None:
        """Fit what is missing, before any job is handed out: workers read it from the cache."""
        for classifier, defense in dict.fromkeys(pipelines):
            if not self._file(classifier, defense).exists():
                say(
                    f"fitting a network to imitate {defense}, for its learned gradient, on images"
                    f" of {self.fitting_split}: once, a minute or several"
                )
            self.hash(classifier, defense)

    def check_cache(self, classifier: str, defense: str) -> None:
        """Raise BadParameter before minutes are spent on weights that could not be kept."""
        file = self._file(classifier, defense)
        if file.exists():
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=file.parent):
                pass
        except OSError as e:
            raise BadParameter(
                f"{file}: the learned gradient cannot be kept there: {e.strerror}."
                " Set XDG_CACHE_HOME to a folder that can be written."
            ) from None

    def _load_or_fit(self, classifier: str, defense: str) -> BPDANetwork:
        file = self._file(classifier, defense)
        if not _is_readable(file):
            self._fit(classifier, defense, file)
        net = UNet(self._components.data.channels, RECIPE["width"])
        net.load_state_dict(load_tensors(file))
        return BPDANetwork(
            backward=Frozen(net).to(self._components.device),
            error=read_header(file).fields["relative_error"],
            sha256=file_sha256(file),
        )

    def _fit(self, classifier: str, defense: str, file: Path) -> None:
        self.check_cache(classifier, defense)
        components = self._components
        x, y, x_val, y_val = (t.to(components.device) for t in self._images())
        purifier = components.defense(defense)
        with torch.inference_mode(False), torch.enable_grad():
            net, error = fit_bpda_network(
                purifier,
                x,
                y,
                components.classifier(classifier).network,
                eps=self._eps(),
                val=(x_val, y_val),
                steps=RECIPE["steps"],
            )
        header = Header(
            kind="imitation",
            component=str(component_key(purifier, "defense"))[:500],
            architecture="bpda-network",
            dataset=components.dataset_name,
            fields={"relative_error": error},
            trained_on=TrainedOn(kind="adversarial", norm="Linf", eps=self._eps()),
            command="",
            seed=0,
            commit="",
        )
        save_weights(file, net.net.state_dict(), header)

    def _file(self, classifier: str, defense: str) -> Path:
        key = cache_key(self._key_inputs(classifier, defense))
        return cache_folder() / "learned" / f"{key[:24]}.safetensors"

    def _key_inputs(self, classifier: str, defense: str) -> dict[str, Any]:
        """Return all that decides the weights."""
        components = self._components
        used = (components.defense(defense), components.classifier(classifier), components.data)
        modules = set().union(*(modules_of(component) for component in used))
        extras = optional_versions(modules)  # named only where there are some
        return {
            **({"libraries": extras} if extras else {}),
            "purifier": components.key("defense", defense),
            "classifier": components.key("classifier", classifier),
            "images": tensor_sha256(*self._images()),
            "recipe": RECIPE,
            "eps": self._eps(),
            "precision": components.precision,
            "layout": components.layout,
            "device": components.device.type,
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
            "code": hash_packages(modules),
        }

    def _eps(self) -> float:
        return self._components.data.card.claim.get("Linf", DEFAULT_EPS)

    def _images(self) -> tuple[Tensor, ...]:
        """Return the first images of train and val with their labels: x, y, x_val, y_val.

        Of a data set without train they are those of `fitting_split`.
        """
        if self._fitting_images is None:
            data = self._components.data
            first_image = data.rows(self.fitting_split, 0, 1)[0]
            n, n_val = (images_of_equal_cost(first_image, i) for i in (IMAGES, VAL_IMAGES))
            self._fitting_images = fitting_images(data, n, n_val)
        return self._fitting_images

    @property
    def fitting_split(self) -> Split:
        """Return the split on whose images the networks are fitted."""
        return choose_fitting_split(self._components.data)


def _is_readable(file: Path) -> bool:
    """Return False for a missing or damaged file, which is then made again."""
    try:
        read_header(file)
        load_tensors(file)
    except BadWeights:
        return False
    return True
