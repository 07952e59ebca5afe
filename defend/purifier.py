"""What a plugin author subclasses. A Purifier *is* an ART preprocessor.

Shapes: b batch, c channel, h height, w width. Pixels are float32 in [0, 1].
"""

from __future__ import annotations

import secrets
import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, dataclass_transform, final

import numpy as np
import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from defend.errors import BadParameter, BrokenPurifier, Mismatch
from defend.learned import Frozen, Learned, set_layout, autocast
from defend.noise import Noise
from defend.registry import Kind
from defend.spec import Configured, check_choice

Backward = Callable[[Tensor], Tensor]  # a differentiable stand-in for a purifier


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a purifier claims about itself. The conformance kit holds it to each claim."""

    paper: str  # "arXiv:1704.01155", or "none: <reason>"
    gradient: Literal["exact", "approximate", "identity", "surrogate"]
    # exact: autograd through `purify` is the derivative.  approximate: autograd through `purify`, where some step is replaced
    # (rounding, nearest code, a member of a chain).  identity: straight past it.  surrogate: through `surrogate`.
    stochastic: bool
    idempotent: bool = False
    channels: tuple[int, ...] = (1, 3)

    def __post_init__(self) -> None:
        check_choice(self, "gradient")


class _StraightThrough(torch.autograd.Function):
    """Forward `value`; send the gradient to `carrier`. BPDA, arXiv:1802.00420, section 4.1.

    x + (value - x).detach() has the same gradient, but rounds: it missed `value` by up to 3e-8
    on a fifth of float32 entries when measured.
    """

    @staticmethod
    def forward(ctx: Any, carrier: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def straight_through(carrier: Tensor, value: Tensor) -> Tensor:
    """`value`, with the gradient of `carrier`. For one step of a purifier: straight_through(z, z.round())."""
    out: Tensor = _StraightThrough.apply(carrier, value)  # type: ignore[no-untyped-call]
    return out


def identity(x: Tensor) -> Tensor:
    """The stand-in that sends a gradient straight past a purifier: BPDA, arXiv:1802.00420, section 4.1."""
    return x


def check_device(device: str | torch.device) -> torch.device:
    """Raises BadParameter where it is not there."""
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise BadParameter(f"device {device!r}: expected auto, cpu, cuda or cuda:N") from None
    there = torch.cuda.device_count() if wanted.type == "cuda" else 1
    if wanted.type not in ("cpu", "cuda") or (wanted.index or 0) >= there:
        raise BadParameter(
            f"device {device!r} is not there: this machine has cpu{''.join(f', cuda:{i}' for i in range(torch.cuda.device_count()))}"
        )
    return wanted


@dataclass_transform(kw_only_default=True, eq_default=False)
@dataclass(kw_only=True, eq=False)
class Purifier(Configured, PreprocessorPyTorch):
    """Abstract. A subclass is final: it adds annotated fields (keyword-only), a `card`, and `purify`."""

    card: ClassVar[Card]
    _runtime = frozenset({"seed", "max_batch", "device", "clip_values", "channels_first"})

    # How it runs, not what it computes: in no setting, record or key.
    seed: int | None = (
        None  # None: fresh entropy at every call, as deployed; an integer: the same noise at every call
    )
    max_batch: int = 256  # ART hands predict() the whole array at once; we cut it here
    device: str | torch.device = (
        "cpu"  # where `forward` and numpy calls purify; replaces ART's device_type
    )
    clip_values: tuple[float, float] = (
        0.0,
        1.0,
    )  # the caller's range of pixels, scaled to [0, 1] and back
    channels_first: bool = True  # the caller's layout: (b, c, h, w), or (b, h, w, c)

    def __post_init__(self) -> None:
        self.require_card('Card(paper="none: my own", gradient="exact", stochastic=False)')
        PreprocessorPyTorch.__init__(self, is_fitted=True, apply_fit=False, apply_predict=True)
        self.device = self._device = check_device(self.device)
        self.require(self.max_batch >= 1, "max_batch", ">= 1")
        self.require(
            isinstance(self.clip_values, tuple | list) and len(self.clip_values) == 2,
            "clip_values",
            "(low, high)",
        )
        self.require(
            self.clip_values[0] < self.clip_values[1], "clip_values", "(low, high) with low < high"
        )
        self.validate()

    _precision = "float32"

    # What an author writes.

    @abstractmethod
    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        """(b, c, h, w) in [0, 1] -> the same shape, dtype, device and range. Randomness comes from `noise` alone."""

    def surrogate(self, x: Tensor, noise: Noise) -> Tensor:
        """A differentiable stand-in, needed only when card.gradient is "surrogate". Its noise is that of the purification."""
        raise NotImplementedError(
            f"{type(self).__name__} claims gradient='surrogate' but has no surrogate()"
        )

    def example(self, n: int = 6) -> Tensor:
        """A legal batch, for the conformance kit."""
        return torch.rand(
            n, max(self.card.channels), 16, 16, generator=torch.Generator().manual_seed(7)
        )

    # What everyone else calls.

    @property
    def trained_on(self) -> str | None:
        """What the defender knew: None where nothing is learned."""
        return None

    @property
    def weights_sha256(self) -> dict[str, str]:
        return {}

    def networks(self) -> list[nn.Module]:
        """What it holds on a device."""
        return []

    def move(self, device: str | torch.device) -> None:
        """Purify on this device from now on."""
        self.device = self._device = check_device(device)
        for net in self.networks():
            net.to(self.device)

    def run_as(self, precision: str, layout: str) -> None:
        """Deploy in another precision ("float32", "bfloat16") and layout ("contiguous", "channels_last") of the networks."""
        self._precision = precision
        for net in self.networks():
            set_layout(net, layout)

    @final
    def purified(
        self, x: Tensor, noise: Noise | None = None, backward: Backward | None = None
    ) -> Tensor:
        """x (b, c, h, w) in [0, 1] purified, at most max_batch at a time. Without `noise`, as deployed.

        Gradients are the declared ones, or those of `backward`: `identity`, or a network fitted to imitate this purifier.
        """
        self._check_input(x)
        if len(x) == 0:
            return x
        noise = self._deployed(len(x), x.device) if noise is None else noise
        cuts = list(zip(x.split(self.max_batch), noise.split(self.max_batch), strict=True))
        if (
            len(cuts) > 1 and torch.is_grad_enabled() and x.requires_grad
        ):  # computed again in the backward pass: one cut's graph at a time
            return torch.cat(
                [
                    checkpoint(
                        self._replay, *cut, backward, use_reentrant=False, preserve_rng_state=False
                    )
                    for cut in cuts
                ]
            )
        return torch.cat([self._one_cut(*cut, backward) for cut in cuts])

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != 4 or not x.is_floating_point():
            raise BadParameter(
                f"{type(self).__name__}: expected a float (b, c, h, w) batch, got {x.dtype} {tuple(x.shape)}"
            )
        if x.shape[1] not in self.card.channels:
            wanted = " or ".join(map(str, self.card.channels))
            raise Mismatch(
                f"{type(self).__name__}: takes images of {wanted} channels, got {x.shape[1]} in {tuple(x.shape)}"
            )

    def _check_range(self, x: np.ndarray) -> None:
        """Raises BadParameter for values that are no numbers; warns of a range that is not the caller's."""
        low, high = (
            (float(x.min()), float(x.max())) if x.size and x.dtype.kind == "f" else self.clip_values
        )
        if not np.isfinite([low, high]).all():
            raise BadParameter(
                f"{type(self).__name__}: expected finite pixels, got {low:g} to {high:g}"
            )
        slack = 0.01 * (self.clip_values[1] - self.clip_values[0])
        if low < self.clip_values[0] - slack or high > self.clip_values[1] + slack:
            said = f"pixels from {low:g} to {high:g}, and clip_values={tuple(self.clip_values)}: give the range that your images have"
            warnings.warn(f"{type(self).__name__}: {said}", stacklevel=3)

    def _replay(self, x: Tensor, noise: Noise, backward: Backward | None) -> Tensor:
        return self._one_cut(x, noise.again(), backward)

    def _one_cut(self, x: Tensor, noise: Noise, backward: Backward | None) -> Tensor:
        """The only place that makes gradients."""
        wanted = torch.is_grad_enabled() and x.requires_grad
        autograd = backward is None and self.card.gradient in ("exact", "approximate")
        version = None if x.is_inference() else x._version
        with torch.set_grad_enabled(wanted and autograd), autocast(x.device, self._precision):
            value = self.purify(
                x if wanted and autograd else x.detach(), noise
            )  # elsewhere it sees what it sees when it is scored
        if version is not None and x._version != version:
            raise BrokenPurifier(
                f"{type(self).__name__}: purify wrote into its input, which others share; let it work on a copy"
            )
        if value.shape != x.shape:
            raise BrokenPurifier(
                f"{type(self).__name__}: purify made {tuple(value.shape)} of {tuple(x.shape)}; let it keep the shape"
            )
        value = value if self._precision == "float32" else value.to(x.dtype)
        if not wanted or autograd:
            return value
        if backward is None and self.card.gradient == "surrogate":
            return straight_through(self.surrogate(x, noise.again()), value)
        return straight_through((backward or identity)(x), value)

    def _deployed(self, n: int, device: torch.device, first: int = 0) -> Noise:
        seed = secrets.randbits(64) if self.seed is None else self.seed
        return Noise.of(seed, torch.arange(first, first + n, device=device))

    # What ART calls: the caller's device, layout, range and precision.

    @final
    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        """To predict and to differentiate: ART never calls estimate_forward on the all-PyTorch path
        (art/estimators/classification/pytorch.py, loss_gradient)."""
        return self._adapted(x), y

    @final
    def estimate_forward(self, x: Tensor, y: Any = None) -> Tensor:
        return self._adapted(x)

    @final
    def __call__(self, x: np.ndarray, y: Any = None) -> tuple[np.ndarray, Any]:
        """numpy in, numpy out, cut on the host: at most max_batch images are on the device at a time."""
        self._check_range(x)
        out = np.empty(x.shape, np.float32)
        seed = secrets.randbits(64) if self.seed is None else self.seed
        for at in range(0, len(x), self.max_batch):
            part = torch.from_numpy(np.ascontiguousarray(x[at : at + self.max_batch]))
            noise = Noise.of(seed, torch.arange(at, at + len(part), device=self.device))
            with torch.no_grad():
                out[at : at + len(part)] = self._adapted(part, noise).numpy()
        return out, y

    def _adapted(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """`purified` for the caller's conventions; float64 in, float32 out."""
        if x.ndim != 4 or not x.is_floating_point():
            self._check_input(x)
        low, high = self.clip_values
        inside = x.to(self.device, torch.float32)
        inside = inside if self.channels_first else inside.permute(0, 3, 1, 2)
        unit = (low, high) == (0.0, 1.0)
        out = self.purified(inside if unit else (inside - low) / (high - low), noise)
        out = out if unit else out * (high - low) + low
        return (out if self.channels_first else out.permute(0, 2, 3, 1)).to(x.device)

    def as_module(self) -> nn.Module:
        """For use without ART: torch.nn.Sequential(purifier.as_module(), model)."""
        return _Module(self)


FINAL_METHODS = [
    *(name for name, value in vars(Purifier).items() if getattr(value, "__final__", False)),
    *(
        "_adapted",
        "_check_input",
        "_deployed",
        "_one_cut",
        "_replay",
        "as_module",
        "estimate_gradient",
    ),
]


def overridden_methods(p: Purifier) -> list[str]:
    """The final methods that it has of its own. Python does not refuse them; through its own `purified` an attacker may be shown anything."""
    return [
        name
        for name in FINAL_METHODS
        if getattr(type(p), name) is not getattr(Purifier, name) or name in vars(p)
    ]


@dataclass_transform(kw_only_default=True, eq_default=False)
@dataclass(kw_only=True, eq=False)
class LearnedPurifier(Learned, Purifier):
    """Abstract. A subclass adds fields, a `card`, `build` (its networks, at `self.net`), `purify`, and a recipe as `fit`."""

    kind: ClassVar[Kind] = "defense"
    _runtime = Purifier._runtime | {"dataset"}

    def __post_init__(self) -> None:
        self._adopt()
        super().__post_init__()
        self.frozen: Frozen = self._build().to(self.device)

    @property
    def net(self) -> nn.Module:
        return self.frozen.net

    def networks(self) -> list[nn.Module]:
        return [self.frozen]


class _Module(nn.Module):
    """Registers the networks, so that `.to` and `state_dict` work."""

    def __init__(self, purifier: Purifier) -> None:
        super().__init__()
        self.purifier = purifier
        self.networks = nn.ModuleList(purifier.networks())

    def forward(self, x: Tensor) -> Tensor:
        return self.purifier.purified(x)
