"""ART's own preprocessors as purifiers: Nicolae et al., arXiv:1807.01069.

The paper is "Adversarial Robustness Toolbox". Preprocessors that turn images into images of the
same shape without labels are accepted; others are refused with the reason. Those written for numpy
get the gradient of the identity. Each ART class has its own pixel range, layout and random numbers;
this adapter gives them those of every purifier.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from art.defences.preprocessor.preprocessor import Preprocessor, PreprocessorPyTorch
from torch import Tensor

from defend.defenses.art_classes import check_parameters, describe_error, find_class
from defend.errors import BadParameter
from defend.noise import Noise
from defend.purifier import Card, Purifier
from defend.spec import coerce

SIZE = 32  # height and width of the images on which a preprocessor is tried

# What the adapter passes to an ART class that takes it.
ADAPTER_PARAMETERS = {
    "clip_values": (0.0, 1.0),
    "channels_first": True,
    "augmentation": False,
    "device_type": "cpu",
}


def ArtPreprocessor(name: str, stochastic: bool = False, **parameters: Any) -> ArtPurifier:
    """Return ART's preprocessor of this class name, with ART's own parameters.

    A spec is `art:name=SpatialSmoothing,window_size=3`. stochastic: True if the preprocessor draws
    random numbers; this must be declared, and is verified. Raises BadParameter if the class cannot
    be used, a parameter is wrong, or the declaration is.
    """
    art_parameters, runtime = {}, {}
    for key, value in parameters.items():
        if key in Purifier._runtime:
            runtime[key] = value
        else:
            art_parameters[key] = float(value) if isinstance(value, Fraction) else value
    return ArtPurifier(
        name=coerce(name, str, "art: name"),
        stochastic=coerce(stochastic, bool, "art: stochastic"),
        parameters=art_parameters,
        **runtime,
    )


class ArtPurifier(Purifier):
    """Compute x' = the ART preprocessor's output, clipped to [0, 1].

    A stochastic preprocessor purifies image by image, because it draws its own random numbers.
    """

    name: str
    stochastic: bool = False
    parameters: dict[str, Any]  # ART's own

    def validate(self) -> None:
        """Construct the ART preprocessor, and try it on an example.

        Sets `_preprocessor` and `_channels_last`. Raises BadParameter if the class cannot be used
        with these fields.
        """
        cls = find_class(self.name)
        signature = inspect.signature(cls).parameters
        check_parameters(self.name, signature, self.parameters)
        self._preprocessor = self._construct(cls, signature)
        # A class without the parameter channels_first has ART's default layout.
        self._channels_last = "channels_first" not in signature
        self._check_on_example()

    def _construct(
        self, cls: type[Preprocessor], signature: Mapping[str, inspect.Parameter]
    ) -> Preprocessor:
        """Return the ART object. Raises BadParameter if ART refuses the parameters."""
        adapter = {key: v for key, v in ADAPTER_PARAMETERS.items() if key in signature}
        try:
            return cls(**self.parameters, **adapter)
        except (TypeError, ValueError, ImportError) as e:
            raise BadParameter(f"art: {self.name}: {describe_error(e)}") from None

    @property
    def card(self) -> Card:  # type: ignore[override]
        """Return the card of this preprocessor: autograd for PyTorch, the identity for numpy."""
        native = isinstance(self._preprocessor, PreprocessorPyTorch)
        return Card(
            paper="arXiv:1807.01069",
            gradient="approximate" if native else "identity",
            stochastic=self.stochastic,
        )

    def example(self, n: int = 6) -> Tensor:
        """Return n random colour images (n, 3, SIZE, SIZE)."""
        return torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(7))

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        """Return the preprocessed x (b, c, h, w), with a seed for each image if stochastic."""
        if not self.stochastic:
            with seeded_generators(0, x.device):
                return self._preprocess(x)
        uniform = noise.uniform(x.flatten(1)[:, :1].float())
        seeds = (uniform * 2**24).long().flatten().tolist()
        outputs = []
        for image, seed in zip(x.split(1), seeds, strict=True):
            with seeded_generators(seed, x.device):
                outputs.append(self._preprocess(image))
        return torch.cat(outputs)

    def _preprocess(self, x: Tensor) -> Tensor:
        """Return ART's output for x in the layout, dtype and device of x, clipped to [0, 1]."""
        images = x.permute(0, 2, 3, 1) if self._channels_last else x
        if isinstance(self._preprocessor, PreprocessorPyTorch):
            self._preprocessor._device = x.device  # ART fixes the device in the constructor
            out: Tensor = self._preprocessor.forward(images.float())[0]
        else:
            array = images.detach().float().cpu().numpy().copy()
            out = torch.from_numpy(np.asarray(self._preprocessor(array)[0], np.float32))
            out = out.to(x.device)
        if self._channels_last:
            out = out.permute(0, 3, 1, 2)
        return out.to(x.dtype).clamp(0, 1)

    def _check_on_example(self) -> None:
        """Preprocess two images twice, with two seeds.

        Raises BadParameter if that fails, changes the shape, or contradicts `stochastic`.
        """
        x, outputs = self.example(2), []
        for seed in (0, 1):
            with seeded_generators(seed, x.device), torch.no_grad():
                outputs.append(self._preprocess_checked(x))
        differ = not torch.equal(*outputs)
        if differ != self.stochastic:
            outcome = "differ" if differ else "agree"
            declared, observed = str(self.stochastic).lower(), str(differ).lower()
            raise BadParameter(
                f"art: {self.name}: got stochastic={declared}, but two runs with different seeds"
                f" {outcome}; write stochastic={observed}"
            )

    def _preprocess_checked(self, x: Tensor) -> Tensor:
        """Return the preprocessed x. Raises BadParameter if ART fails or changes the shape."""
        try:
            out = self._preprocess(x)
        except Exception as e:  # ART and the libraries behind it raise exceptions of every class
            raise BadParameter(
                f"art: {self.name} does not take a batch of images without labels:"
                f" {describe_error(e)}"
            ) from None
        if out.shape != x.shape:
            raise BadParameter(
                f"art: {self.name}: expected output of shape {tuple(x.shape)}, as the input, got"
                f" {tuple(out.shape)}; choose a preprocessor that keeps the shape"
            )
        return out


@contextmanager
def seeded_generators(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators of torch, numpy and random, and restore them afterwards."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
