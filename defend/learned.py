"""The common part of learned purifiers and classifiers: networks built from fields, filled from
named weights, and frozen.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections import deque
from functools import partial
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any, ClassVar, Protocol, dataclass_transform

import torch
from torch import nn

from defend.errors import BadParameter, BadWeights, suggest_names
from defend.registry import REGISTRY, Kind
from defend.spec import Configured
from defend.trained_on import TrainedOn
from defend.weights.header import WeightsFile, load_tensors
from defend.weights.third_party import compare_states, loaded_weights, merge_hashes
from defend.weights.zoo import Wanted, decided_fields, find_weights, is_same_component
from defend.winograd import use_winograd

SAVE_EVERY = 10.0  # seconds between two writes of a resume file


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context for a precision: bfloat16 where that is sound, or no change for
    "float32".
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def set_layout(net: nn.Module, layout: str) -> None:
    """Store parameters in "contiguous" or "channels_last" order, which convolutions follow.

    "winograd" is "channels_last" with large 3x3 convolutions by defend/winograd.py.
    """
    contiguous = layout == "contiguous"
    memory_format = torch.contiguous_format if contiguous else torch.channels_last
    net.to(memory_format=memory_format)  # type: ignore[call-overload]
    use_winograd(net, layout == "winograd")


class Frozen(nn.Module):
    """A network that stays in eval mode whatever `train()` says, and whose parameters have no
    gradients.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.requires_grad_(False)
        self.precision = "float32"
        self.label = ""  # how messages name the component that holds the network
        self.eval()

    def train(self, mode: bool = True) -> Frozen:
        """Stay in eval mode."""
        return super().train(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the network's output, computed in `precision`, in the dtype of x."""
        if self.precision == "float32":
            return self.net(x)  # type: ignore[no-any-return]
        with autocast(x.device, self.precision):
            return self.net(x).to(x.dtype)  # type: ignore[no-any-return]


def find_networks(holder: object) -> list[nn.Module]:
    """Return the networks that an object holds: in attributes, containers, and objects below them.

    A network inside another one is not listed again.
    """
    networks: list[nn.Module] = []
    visited: set[int] = set()
    pending: deque[Any] = deque(vars(holder).values())
    while pending:
        value = pending.popleft()
        if id(value) in visited:
            continue
        visited.add(id(value))
        if isinstance(value, nn.Module):
            networks.append(value)
        else:
            pending += _held_values(value)
    inner = {id(m) for net in networks for m in list(net.modules())[1:]}
    return [net for net in networks if id(net) not in inner]


def _held_values(value: Any) -> list[Any]:
    """Return what a container, a partial, a bound method or an object holds."""
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset | deque):
        return list(value)
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, MethodType):
        return [value.__self__]
    if isinstance(value, type | ModuleType | torch.Tensor):
        return []
    return list(getattr(value, "__dict__", {}).values())


def freeze(net: nn.Module) -> None:
    """Put a network into eval mode, without gradients of its parameters."""
    net.requires_grad_(False).eval()


def is_frozen(net: nn.Module) -> bool:
    """Return True if all parts of a network are in eval mode, and no parameter has a gradient."""
    is_trained = any(module.training for module in net.modules())
    return not is_trained and not any(w.requires_grad for w in net.parameters())


class InBfloat16(nn.Module):
    """A network computed in bfloat16 where that is sound (convolutions, matrices), without a change
    to its parameters.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self._net = [net]  # a list hides it from Module: modes and layouts are set by its owner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the network's output in the dtype of x."""
        with autocast(x.device, "bfloat16"):
            return self._net[0](x).to(x.dtype)  # type: ignore[no-any-return]


class TrainingRecipe(Protocol):
    """What a component asks of its recipe."""

    @classmethod
    def fit(
        cls,
        component: Any,
        x: Any,
        y: Any,
        options: dict[str, Any],
        *,
        val: tuple[Any, Any] | None,
        resume: Path | None,
        save_every: float,
        progress: bool,
    ) -> Any:
        """Train the component, and return the recipe."""


@dataclass_transform(kw_only_default=True, eq_default=False)
class Learned(Configured):
    """Abstract base of components with weights.

    `weights` is "auto" (the zoo's default for the component, the data set and the fields that were
    set), a name, a path, or "untrained". Fields that were not set come from the file's header.

    A field shapes the network, and must then agree with the file, unless `uses` names it: a noise
    level, a number of steps, a scale. `architecture` names the network. All components that
    declare it load each other's files; without one, a component loads its own alone.
    """

    kind: ClassVar[Kind]
    architecture: ClassVar[str] = ""
    uses: ClassVar[frozenset[str]] = frozenset()  # fields that are free at load
    recipe: ClassVar[type[TrainingRecipe] | None] = None  # a subclass of training.recipe.Recipe
    weights: str = "auto"
    dataset: str | None = None  # the data set that "auto" looks for; no influence on the output
    frozen_in_fit = frozenset[str]()  # parameters that the last `fit` left alone
    fitted_on = TrainedOn(kind="untrained")  # set by `fit`
    started_from = ""  # set by `fit`: the sha256 of the weights that the training began from
    frozen_in_build = frozenset[str]()  # parameters that `build` froze; `fit` leaves them alone
    _loaded = dict[str, str]()  # files of other libraries that `build` loaded: name -> sha256
    _set_fields = dict[str, Any]()  # the fields that the caller set, as opposed to defaults

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if isinstance(cls.uses, str):  # a text is a collection of its letters
            raise BadParameter(
                f"{cls.__name__}: expected a set of names of fields in uses, got {cls.uses!r}; "
                f"write uses = frozenset({{{cls.uses!r}}})"
            )
        cls.uses = frozenset(cls.uses)
        unknown = sorted(cls.uses - set(cls.__dataclass_fields__))
        if unknown:
            raise BadParameter(
                f"{cls.__name__}: expected names of fields in uses, got {', '.join(unknown)}."
                f"{suggest_names(unknown[0], cls.__dataclass_fields__)}"
            )

    def __new__(cls, **fields: Any) -> Any:
        """Remember the fields that the caller sets."""
        component: Any = super().__new__(cls)
        component._set_fields = dict(fields)
        return component

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, Any]]:
        """Let copy and pickle call `__new__` without fields: the state brings them."""
        return (), {}

    @abstractmethod
    def build(self) -> nn.Module:
        """Return the network that the fields describe.

        Its initial weights may be random: the generator is seeded.
        """

    def fit(
        self,
        x: Any,
        y: Any = None,
        *,
        val: tuple[Any, Any] | None = None,
        resume: Path | None = None,
        save_every: float = SAVE_EVERY,
        progress: bool = True,
        **options: Any,
    ) -> Any:
        """Train by `recipe` on images x (n, c, h, w) in [0, 1] with labels y (n,), or on a Source.

        val: images and labels on which the quality is measured after each epoch. resume: a file
        that is written every `save_every` seconds and at Control-C, and that an interrupted run
        goes on from. options: the fields of the recipe. Return the recipe, whose `quality` measures
        the component. Raise BadWeights without a recipe, BadParameter for wrong options or images.
        """
        if self.recipe is None:
            raise BadWeights(
                f"{type(self).__name__} has no recipe for training; load weights instead"
            )
        return self.recipe.fit(
            self, x, y, options, val=val, resume=resume, save_every=save_every, progress=progress
        )

    def _adopt(self) -> None:
        """Find the weights file and adopt the fields of its header.

        To be called before `validate`. A file of another component decides the fields that shape
        the network, and no use.
        """
        self.file: WeightsFile | None = None
        if self.weights == "untrained":
            return
        self.file = find_weights(self.weights, self._wanted())
        self.weights = self.file.name
        header = self.file.header
        adopted = set(type(self).fields()) - {"weights"} - set(self._set_fields)
        if not is_same_component(header.component, self.component):
            adopted -= self.uses
        decided = decided_fields(header, self.component)
        for name in adopted & set(decided):
            value = decided[name]
            as_tuple = isinstance(value, list) and isinstance(getattr(self, name, None), tuple)
            setattr(self, name, tuple(value) if as_tuple else value)  # JSON has no tuples

    def _wanted(self) -> Wanted:
        fields = type(self).fields()
        shaping = set(fields) - {"weights"} - self.uses
        defaults = {name: default for name, (_, default) in fields.items()}
        return Wanted(
            kind=self.kind,
            component=self.component,
            architecture=self.architecture or self.component,
            dataset=self.dataset,
            fields={name: v for name, v in self._set_fields.items() if name in shaping},
            defaults={name: v for name, v in defaults.items() if v is not dataclasses.MISSING},
        )

    @torch.inference_mode(False)
    def _build(self) -> Frozen:
        """Return the frozen network with its weights. Raise BadWeights if the file does not fit."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = self.build()
        self.frozen_in_build = frozenset(
            name for name, p in net.named_parameters() if not p.requires_grad
        )
        self._loaded = loaded_weights(net)
        if self.file is not None:
            state = load_tensors(self.file.path)
            try:
                net.load_state_dict(state)
            except RuntimeError as e:
                raise BadWeights(
                    f"{self.file.name}: does not fit {type(self).__name__}({self.settings}):"
                    f" {compare_states(state, net.state_dict(), e)}"
                ) from None
        return Frozen(net)

    @property
    def component(self) -> str:
        """The name under which the class is registered, and which weights carry."""
        return REGISTRY.component(self.kind, type(self))

    @property
    def trained_on(self) -> tuple[TrainedOn, ...]:
        """Return what the training knew; it is unknown for networks of other libraries.

        Networks beside the one that `build` returned come second.
        """
        unknown = TrainedOn(kind="unknown")
        beside = (unknown,) if self._loaded_beside() else ()
        if self.file:
            return (self.file.header.trained_on, *beside)
        is_foreign = self._loaded and self.fitted_on.kind == "untrained"
        return (unknown if is_foreign else self.fitted_on, *beside)

    @property
    def weights_sha256(self) -> dict[str, str]:
        """The hashes of `own_weights`, and of the files of networks beside that of `build`."""
        return merge_hashes(self.own_weights, self._loaded_beside())

    @property
    def own_weights(self) -> dict[str, str]:
        """The hash of the weights file by its name, or of the files that `build` loaded."""
        return {self.file.name: self.file.sha256} if self.file else self._loaded

    @property
    def weights_dataset(self) -> str:
        """The data set that the weights are for; "" and "unknown" if nobody said so."""
        return self.file.header.dataset if self.file else ""

    def is_own_network(self, held: object) -> bool:
        """Return True for the module around the network that `build` returned."""
        return isinstance(held, Frozen) and held.net is getattr(self, "net", None)

    def _loaded_beside(self) -> dict[str, str]:
        """Return the files that networks beside that of `build` loaded: name -> sha256."""
        find = getattr(self, "networks", None)  # of purifiers, which an author may override
        networks = find() if callable(find) else find_networks(self)
        return loaded_weights(*(net for net in networks if not self.is_own_network(net)))
