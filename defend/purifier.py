"""The base classes of purifiers. A Purifier is an ART preprocessor.

Shapes: b batch, c channel, h height, w width. Pixels are float32 in [0, 1].
"""

from __future__ import annotations

import secrets
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, dataclass_transform, final

import numpy as np
import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from defend.art_params import ArtParams
from defend.batch_sizes import images_at_once
from defend.errors import BadParameter, BrokenPurifier
from defend.gradients import Backward as Backward
from defend.gradients import PlainAutograd as PlainAutograd
from defend.gradients import Relaxed as Relaxed
from defend.gradients import differentiated_by, inherited
from defend.gradients import identity as identity
from defend.gradients import straight_through as straight_through
from defend.layouts import choose_layout
from defend.learned import (
    Frozen,
    Learned,
    autocast,
    find_networks,
    freeze,
    is_frozen,
    set_layout,
)
from defend.noise import Noise
from defend.numerics import check_device as check_device
from defend.pixel_checks import (
    check_array,
    check_batch,
    check_range,
    is_recorded,
    keep_undefined,
    read_range,
)
from defend.purifier_module import PurifierModule
from defend.registry import Kind
from defend.spec import Configured, check_choice
from defend.trained_on import TrainedOn
from defend.weights.third_party import loaded_weights


@dataclass(frozen=True, kw_only=True)
class Card:
    """The claims of a purifier about itself. The conformance kit checks each claim.

    gradient is one of "exact": autograd through `purify` is the derivative; "approximate": autograd
    through `purify`, in which a step is replaced (rounding, nearest code, a member of a chain);
    "identity": straight past the purifier; "surrogate": through `surrogate`.
    """

    paper: str  # "arXiv:1704.01155", or "none: <reason>"
    gradient: Literal["exact", "approximate", "identity", "surrogate"]
    stochastic: bool
    idempotent: bool = False
    channels: tuple[int, ...] = (1, 3)

    def __post_init__(self) -> None:
        check_choice(self, "gradient")


@dataclass_transform(kw_only_default=True, eq_default=False)
@dataclass(kw_only=True, eq=False)
class Purifier(ArtParams, Configured, PreprocessorPyTorch):
    """The base of purifiers, final classes that add keyword-only fields, a `card` and `purify`."""

    card: ClassVar[Card]
    # These fields say how it runs, not what it computes: they are in no setting, record or key.
    _runtime = frozenset(
        {"seed", "max_batch", "device", "clip_values", "channels_first", "apply_fit"}
    )
    # None: fresh entropy at every call, as deployed. An integer: the same noise at every call.
    seed: int | None = None
    # ART passes the whole array to predict() at once; it is cut into batches of this size. Unless
    # it is set, large images are also cut by their pixels: see `images_at_once`.
    max_batch: int = 256
    # The device of `forward` and of calls with numpy arrays. It replaces ART's device_type.
    device: str | torch.device = "cpu"
    # The range of the caller's pixels, which is scaled to [0, 1] and back.
    clip_values: tuple[float, float] = (0.0, 1.0)
    # The caller's layout: (b, c, h, w), or (b, h, w, c).
    channels_first: bool = True
    # True: ART's `classifier.fit` purifies, too, as in training-and-test defenses.
    apply_fit: bool = False

    @torch.inference_mode(False)
    def __post_init__(self) -> None:
        self.require_card('Card(paper="none: my own", gradient="exact", stochastic=False)')
        PreprocessorPyTorch.__init__(self, is_fitted=True)
        self.device = self._device = check_device(self.device)
        self.require(self.max_batch >= 1, "max_batch", ">= 1")
        self.clip_values = read_range(type(self).__name__, self.clip_values)
        self.validate()

    _precision = "float32"
    _warned_of_range = False

    # The methods that an author writes.

    @abstractmethod
    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        """Return purified images: (b, c, h, w) in [0, 1] in the same shape, dtype, device and
        range.

        All randomness comes from `noise`.
        """

    def surrogate(self, x: Tensor, noise: Noise) -> Tensor:
        """Return a differentiable stand-in of `purify`, for card.gradient "surrogate" alone.

        noise: the noise of the purification, from its start.
        """
        raise NotImplementedError(
            f"{type(self).__name__} claims gradient='surrogate' but has no surrogate()"
        )

    def relaxed(self, x: Tensor, noise: Noise, temperature: float) -> Tensor:
        """Return `purify(x, noise)` to the bit, with the gradient of a relaxation of its steps.

        A relaxation is a smooth function that tends to the step when the temperature tends to 0:
        write `relax(soft, value)` for the step. Choose a unit that makes 0.3 sensible.
        """
        raise NotImplementedError(f"{type(self).__name__} declares no relaxed()")

    def example(self, n: int = 6) -> Tensor:
        """Return a legal batch of n images, for the conformance kit."""
        generator = torch.Generator().manual_seed(7)
        return torch.rand(n, max(self.card.channels), 16, 16, generator=generator)

    # The methods that everyone else calls.

    @property
    def has_relaxation(self) -> bool:
        """True if it declares `relaxed`."""
        return type(self).relaxed is not Purifier.relaxed

    @property
    def trained_on(self) -> tuple[TrainedOn, ...]:
        """What the training of each learned part knew: unknown for those of other libraries."""
        return (TrainedOn(kind="unknown"),) if self.weights_sha256 else ()

    @property
    def weights_sha256(self) -> dict[str, str]:
        """The hashes of the weights files by their names, as `load_pretrained` remembers them."""
        return loaded_weights(*self.networks())

    def networks(self) -> list[nn.Module]:
        """Return the networks that it holds, which are frozen, moved, cast and registered."""
        return find_networks(self)

    def move(self, device: str | torch.device) -> None:
        """Purify on this device from now on."""
        self.device = self._device = check_device(device)
        for net in self.networks():
            freeze(net)
            net.to(self.device)

    def run_as(self, precision: str, layout: str) -> None:
        """Deploy the networks in a precision and a layout: see `NumericSettings`."""
        self._precision = precision
        for net in self.networks():
            set_layout(net, layout)

    def images_at_once(self, x: Tensor | np.ndarray) -> int:
        """Return how many images of a batch (b, ...) are purified at once: max_batch, or fewer
        large ones unless max_batch was set.
        """
        if self.max_batch != type(self).max_batch:  # an author's or user's own limit
            return self.max_batch
        return images_at_once(self.max_batch, x.shape, self._device.type)

    @final
    def purified(
        self, x: Tensor, noise: Noise | None = None, backward: Backward | None = None
    ) -> Tensor:
        """Return x (b, c, h, w) in [0, 1] purified, at most max_batch images at a time.

        Without `noise` it runs as deployed.

        Gradients are the declared ones, or those of `backward`: `identity`, a network fitted to
        imitate this purifier, `Relaxed(temperature)`, or `PlainAutograd()`. Raise BadParameter,
        Mismatch for an input that it cannot take, BrokenPurifier if `purify` breaks its contract.
        """
        self._check_input(x)
        if len(x) == 0:
            return x
        self._freeze_new_networks()
        noise = self._deployed(len(x), x.device) if noise is None else noise
        size = self.images_at_once(x)
        cuts = list(zip(x.split(size), noise.split(size), strict=True))
        differentiated = torch.is_grad_enabled() and x.requires_grad
        backward = inherited(backward) if differentiated else backward
        if len(cuts) == 1 or not differentiated:
            return torch.cat([self._one_cut(*cut, backward) for cut in cuts])
        # Compute again in the backward pass, so that one cut's graph is in memory at a time.
        outputs = [
            checkpoint(self._replay, *cut, backward, use_reentrant=False, preserve_rng_state=False)
            for cut in cuts
        ]
        return torch.cat(outputs)

    def _freeze_new_networks(self) -> None:
        """Freeze and move the networks that an author made after `__post_init__`."""
        for net in self.networks():
            if not is_frozen(net):
                freeze(net)
                net.to(self.device)

    def _check_input(self, x: Tensor) -> None:
        """Raise BadParameter, Mismatch for a batch that is not (b, c, h, w) of floats and of the
        right channels.
        """
        check_batch(type(self).__name__, x, self.card.channels, self.channels_first)

    def _replay(self, x: Tensor, noise: Noise, backward: Backward | None) -> Tensor:
        return self._one_cut(x, noise.again(), backward)

    def _one_cut(self, x: Tensor, noise: Noise, backward: Backward | None) -> Tensor:
        """Purify at most max_batch images. This is the only place that makes gradients."""
        differentiated = torch.is_grad_enabled() and x.requires_grad
        is_declared = backward is None and self.card.gradient in ("exact", "approximate")
        goes_through = is_declared or isinstance(backward, Relaxed | PlainAutograd)
        use_autograd = differentiated and goes_through
        # Without autograd, `purify` gets the detached input that it gets when it is scored.
        source = x if use_autograd else x.detach()
        version = None if x.is_inference() else x._version
        with torch.set_grad_enabled(use_autograd), autocast(x.device, self._precision):
            if use_autograd and isinstance(backward, Relaxed):
                value = self.relaxed(source, noise, backward.temperature)
            else:
                with differentiated_by(backward):
                    value = self.purify(source, noise)
        self._check_output(value, x, version)
        value = keep_undefined(value, x)
        value = value if self._precision == "float32" else value.to(x.dtype)
        if not differentiated or is_declared or isinstance(backward, Relaxed | PlainAutograd):
            return value
        if backward is None and self.card.gradient == "surrogate":
            return straight_through(self.surrogate(x, noise.again()), value)
        return straight_through((backward or identity)(x), value)

    def _check_output(self, value: Tensor, x: Tensor, version: int | None) -> None:
        """Raise BrokenPurifier if `purify` wrote into x, whose version it was called with, or
        changed the shape.
        """
        if not isinstance(value, Tensor):
            raise BrokenPurifier(
                f"{type(self).__name__}: purify returned {type(value).__name__}; let it return one"
                " tensor of the shape of x"
            )
        if version is not None and x._version != version:
            raise BrokenPurifier(
                f"{type(self).__name__}: purify wrote into its input, which others share; "
                "let it work on a copy"
            )
        if value.shape != x.shape:
            raise BrokenPurifier(
                f"{type(self).__name__}: purify made {tuple(value.shape)} of {tuple(x.shape)}; "
                "let it keep the shape"
            )

    def _deployed(self, n: int, device: torch.device) -> Noise:
        """Return the noise of a deployed call: of fresh entropy, or of `seed`.

        Raise BadParameter where a call is recorded, which would repeat one draw for ever.
        """
        if self.card.stochastic and is_recorded():
            raise BadParameter(
                f"{type(self).__name__}: draws new noise in each call, and an exported or traced"
                " program would repeat one draw; call the purifier itself before the program"
            )
        return Noise.of(self._deployed_seed(), torch.arange(n, device=device))

    def _deployed_seed(self) -> int:
        return secrets.randbits(64) if self.seed is None else self.seed

    # The methods that ART calls, in the caller's device, layout, range and precision.

    @final
    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        """Purify for predictions and gradients.

        ART never calls estimate_forward if all preprocessors are PyTorch ones
        (art/estimators/classification/pytorch.py, loss_gradient).
        """
        return self._adapted(x), y

    @final
    def estimate_forward(self, x: Tensor, y: Any = None) -> Tensor:
        """Purify with the gradient of `forward`."""
        return self._adapted(x)

    @final
    def __call__(self, x: np.ndarray, y: Any = None) -> tuple[np.ndarray, Any]:
        """Purify numpy arrays.

        They are cut on the host: at most max_batch images are on the device.
        """
        check_array(type(self).__name__, x)
        purified = np.empty(x.shape, np.float32)
        seed = self._deployed_seed()
        size = self.images_at_once(x)
        for start in range(0, len(x), size):
            rows = slice(start, start + size)
            part = torch.from_numpy(np.ascontiguousarray(x[rows]))
            index = torch.arange(start, start + len(part), device=self.device)
            with torch.no_grad():
                purified[rows] = self._adapted(part, Noise.of(seed, index)).numpy()
        return purified, y

    def _adapted(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """Call `purified` with the caller's conventions. float64 in, float32 out."""
        if x.ndim != 4 or not x.is_floating_point():
            self._check_input(x)
        low, high = self.clip_values
        scaled = (low, high) != (0.0, 1.0)
        warn = not self._warned_of_range
        if check_range(type(self).__name__, x, self.clip_values, warn) and warn:
            self._warned_of_range = True
        images = x.to(self.device, torch.float32)
        images = images if self.channels_first else images.permute(0, 3, 1, 2)
        images = (images - low) / (high - low) if scaled else images
        output = self.purified(images, noise)
        output = output * (high - low) + low if scaled else output
        output = output if self.channels_first else output.permute(0, 2, 3, 1)
        return output.to(x.device)

    def as_module(self) -> nn.Module:
        """Return a module for use without ART: torch.nn.Sequential(purifier.as_module(), model)."""
        return PurifierModule(self)


_FINAL_BY_DECORATOR = [
    name for name, value in vars(Purifier).items() if getattr(value, "__final__", False)
]
FINAL_METHODS = [
    *_FINAL_BY_DECORATOR,
    "_adapted",
    "_check_input",
    "_check_output",
    "_deployed",
    "_deployed_seed",
    "_freeze_new_networks",
    "_one_cut",
    "_replay",
    "as_module",
    "estimate_gradient",
]


def overridden_methods(purifier: Purifier) -> list[str]:
    """Return the final methods that a purifier overrides.

    Python does not refuse them, and through its own `purified` a purifier could show anything to an
    attacker.
    """
    own = vars(purifier)
    return [
        name
        for name in FINAL_METHODS
        if getattr(type(purifier), name) is not getattr(Purifier, name) or name in own
    ]


@dataclass_transform(kw_only_default=True, eq_default=False)
@dataclass(kw_only=True, eq=False)
class LearnedPurifier(Learned, Purifier):
    """Abstract base of learned purifiers.

    A subclass adds fields, a `card`, `build` (its networks, at `self.net`), `purify`, and a
    `recipe` to train by.
    """

    kind: ClassVar[Kind] = "defense"
    any_layout: ClassVar[bool] = False  # whether its network works in each: the fastest is taken
    _runtime = Purifier._runtime | {"dataset"}

    def __post_init__(self) -> None:
        self._adopt()
        super().__post_init__()
        self.frozen: Frozen = self._build().to(self.device)
        if self.any_layout and self.file and self._device.type == "cpu":
            set_layout(self.frozen, choose_layout(self.frozen))

    @property
    def net(self) -> nn.Module:
        """The network that `build` returned."""
        return self.frozen.net
