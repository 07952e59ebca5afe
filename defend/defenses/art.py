"""ART's own preprocessors as purifiers: Nicolae et al., "Adversarial Robustness Toolbox", arXiv:1807.01069.

Those that turn images into images of the same shape without labels; others are refused with the reason. numpy ones get the identity's
gradient. ART knows pixel ranges, layouts and random numbers by each class alone; here they are those of every purifier.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from art.defences import preprocessor as shelf
from art.defences.preprocessor.preprocessor import (
    Preprocessor,
    PreprocessorPyTorch,
    PreprocessorTensorFlowV2,
)
from torch import Tensor

from defend.errors import BadParameter, near, one_line
from defend.noise import Noise
from defend.purifier import Card, Purifier
from defend.spec import coerce

OURS = frozenset(
    {"clip_values", "channels_first", "augmentation", "apply_fit", "apply_predict", "device_type"}
)  # said here, not in a spec
SIDE = 32  # pixels of the images on which a preprocessor is tried


def ArtPreprocessor(name: str, stochastic: bool = False, **parameters: Any) -> ArtPurifier:
    """ART's preprocessor of this class name, with ART's own parameters: `art:name=SpatialSmoothing,window_size=3`.

    stochastic: does it draw random numbers? To be said, and tried: BadParameter where it is not so.
    """
    runtime = {key: parameters.pop(key) for key in Purifier._runtime & parameters.keys()}
    plain = {
        key: float(value) if isinstance(value, Fraction) else value
        for key, value in parameters.items()
    }
    said = {
        "name": coerce(name, str, "art: name"),
        "stochastic": coerce(stochastic, bool, "art: stochastic"),
    }
    return ArtPurifier(**said, parameters=plain, **runtime)


class ArtPurifier(Purifier):
    """x' = the ART preprocessor's output, clipped to [0, 1]. With random numbers of its own, image by image."""

    name: str
    stochastic: bool = False
    parameters: dict[str, Any]  # ART's own

    def validate(self) -> None:
        cls = find(self.name)
        takes = inspect.signature(cls).parameters
        check_parameters(self.name, takes, self.parameters)
        given = {
            "clip_values": (0.0, 1.0),
            "channels_first": True,
            "augmentation": False,
            "device_type": "cpu",
        }
        try:
            self._inner: Preprocessor = cls(
                **self.parameters, **{key: value for key, value in given.items() if key in takes}
            )
        except (TypeError, ValueError, ImportError) as e:
            raise BadParameter(f"art: {self.name}: {first_line(e)}") from None
        self._channels_last = (
            "channels_first" not in takes
        )  # ART's own layout, for all that do not ask
        self._try()

    @property
    def card(self) -> Card:  # type: ignore[override]
        native = isinstance(self._inner, PreprocessorPyTorch)
        return Card(
            paper="arXiv:1807.01069",
            gradient="approximate" if native else "identity",
            stochastic=self.stochastic,
        )

    def example(self, n: int = 6) -> Tensor:
        return torch.rand(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(7))

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        if not self.stochastic:
            with own_generators(0, x.device):
                return self._run(x)
        seeds = (noise.uniform(x.flatten(1)[:, :1].float()) * 2**24).long().flatten().tolist()
        outs = []
        for image, seed in zip(x.split(1), seeds, strict=True):
            with own_generators(seed, x.device):
                outs.append(self._run(image))
        return torch.cat(outs)

    def _run(self, x: Tensor) -> Tensor:
        laid = x.permute(0, 2, 3, 1) if self._channels_last else x
        if isinstance(self._inner, PreprocessorPyTorch):
            self._inner._device = x.device  # ART fixes it when the object is made
            out: Tensor = self._inner.forward(laid.float())[0]
        else:
            out = torch.from_numpy(
                np.asarray(self._inner(laid.detach().float().cpu().numpy().copy())[0], np.float32)
            ).to(x.device)
        out = out.permute(0, 3, 1, 2) if self._channels_last else out
        return out.to(x.dtype).clamp(0, 1)

    def _try(self) -> None:
        """Twice on two images. Raises BadParameter where that fails, changes the shape, or does not fit what `stochastic` says."""
        x, outs = self.example(2), []
        for seed in (0, 1):
            with own_generators(seed, x.device), torch.no_grad():
                outs.append(self._try_once(x))
        differ = not torch.equal(*outs)
        if differ != self.stochastic:
            saw = "two runs differ" if differ else "two runs with other seeds agree"
            raise BadParameter(f"art: {self.name}: {saw}: say stochastic={str(differ).lower()}")

    def _try_once(self, x: Tensor) -> Tensor:
        try:
            out = self._run(x)
        except (
            Exception
        ) as e:  # whatever ART or the libraries behind it raise, it cannot purify images
            raise BadParameter(
                f"art: {self.name} does not take a batch of images without labels: {first_line(e)}"
            ) from None
        if out.shape != x.shape:
            raise BadParameter(
                f"art: {self.name} turns images {tuple(x.shape)} into {tuple(out.shape)}; a purifier keeps the shape"
            )
        return out


def find(name: str) -> type[Preprocessor]:
    """ART's class. Raises BadParameter."""
    there = {
        key: value
        for key, value in vars(shelf).items()
        if inspect.isclass(value) and issubclass(value, Preprocessor)
    }
    usable = sorted(
        key
        for key, value in there.items()
        if not issubclass(value, PreprocessorTensorFlowV2) and not inspect.isabstract(value)
    )
    if name not in usable:
        why = (
            f"{name} is abstract, or written for TensorFlow"
            if name in there
            else f"ART has no preprocessor {name!r}"
        )
        raise BadParameter(f"art: {why}.{near(name, usable)} There are {', '.join(usable)}.")
    return there[name]


def check_parameters(name: str, takes: Any, given: dict[str, Any]) -> None:
    own = [key for key in takes if key not in OURS]
    if bad := [key for key in given if key not in own]:
        raise BadParameter(
            f"art: {name} has no parameter {bad[0]!r} of its own.{near(bad[0], own)} It takes {', '.join(own) or 'none'}."
        )
    if missing := [
        key for key in own if takes[key].default is inspect.Parameter.empty and key not in given
    ]:
        raise BadParameter(
            f"art: {name} needs {', '.join(missing)}: write art:name={name},{missing[0]}=..."
        )


def first_line(e: Exception) -> str:
    """ART often wraps its messages."""
    text = one_line(e)
    missing = f" (pip install {e.name})" if isinstance(e, ImportError) and e.name else ""
    return f"{text[:200] or type(e).__name__}{missing}"


@contextmanager
def own_generators(seed: int, device: torch.device) -> Iterator[None]:
    """The global generators of torch, numpy and random seeded here, and as they were afterwards."""
    kept = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            yield
        finally:
            np.random.set_state(kept[0])
            random.setstate(kept[1])
