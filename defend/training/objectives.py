"""Objectives: losses, each with the parameters that it trains and an optimiser of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn, optim

from defend.errors import BadParameter
from defend.learned import Frozen
from defend.noise import Noise
from defend.training.options import LoopOptions

Loss = Callable[[nn.Module, Tensor, Tensor, Noise], Tensor]  # (net, x, y, noise) -> batch mean
NamedParameters = dict[str, nn.Parameter]


@dataclass(frozen=True)
class Objective:
    """A loss and the parameters that it trains.

    `parameters` are patterns of names, as in "critic.*" or "*.quantiles"; without any, the
    objective trains every parameter that no other objective names. The learning rate is that of the
    recipe, times `lr_factor`.
    """

    name: str  # an identifier, for progress and resume files
    loss: Loss
    parameters: tuple[str, ...] = ()
    lr_factor: float = 1.0

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise BadParameter(f"Objective(name={self.name!r}): expected a name such as 'critic'")
        if isinstance(self.parameters, str):
            raise BadParameter(
                f"Objective {self.name}: expected a tuple of patterns, got"
                f" {self.parameters!r}; write parameters=({self.parameters!r},)"
            )
        if not self.lr_factor > 0:
            raise BadParameter(
                f"Objective {self.name}: expected lr_factor > 0, got {self.lr_factor}"
            )

    def names(self, parameter: str) -> bool:
        """Return True if one of the patterns fits this name."""
        return any(fnmatchcase(parameter, pattern) for pattern in self.parameters)


class TrainedPart:
    """The parameters of one objective, with their optimiser."""

    def __init__(
        self, objective: Objective, own: NamedParameters, others: NamedParameters, options: Any
    ) -> None:
        self.objective = objective
        self._own = own
        self._others = others
        self.optimiser = make_optimiser(list(own.values()), options)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Compute no gradient for the parameters of other objectives while the block runs."""
        for parameter in self._others.values():
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in self._others.values():
                parameter.requires_grad_(True)

    def descend(self, loss: Tensor, lr: float, clip: float) -> None:
        """Take one step of the optimiser along the gradient of the loss.

        clip: the largest norm of the gradient; 0: no limit.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = lr * self.objective.lr_factor
        self.optimiser.zero_grad()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(self._own.values(), clip)
        self.optimiser.step()


def make_trained_parts(
    net: nn.Module, objectives: Sequence[Objective], options: LoopOptions
) -> list[TrainedPart]:
    """Return each objective with the parameters of `net` that it trains.

    Raise BadParameter unless every parameter that is not frozen belongs to exactly one objective,
    and every objective has one, and a name of its own.
    """
    _check_names([objective.name for objective in objectives])
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    parameters: list[NamedParameters] = [{} for _ in objectives]
    for name, parameter in trained.items():
        parameters[_index_of_owner(name, objectives)][name] = parameter
    parts = []
    for objective, own in zip(objectives, parameters, strict=True):
        if not own:
            raise BadParameter(_describe_empty(objective, trained))
        others = {name: p for name, p in trained.items() if name not in own}
        parts.append(TrainedPart(objective, own, others, options))
    return parts


def _check_names(names: Sequence[str]) -> None:
    """Raise BadParameter if two objectives have one name: resume files keep them apart by it."""
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise BadParameter(
            f"objectives: expected a different name for each, got {', '.join(names)}; rename one"
            f" of those called {' and '.join(repeated)}"
        )


def _index_of_owner(parameter: str, objectives: Sequence[Objective]) -> int:
    """Return the number of the objective that trains a parameter."""
    owners = [k for k, objective in enumerate(objectives) if objective.names(parameter)]
    if not owners:
        owners = [k for k, objective in enumerate(objectives) if not objective.parameters]
    if len(owners) == 1:
        return owners[0]
    names = " and ".join(objectives[k].name for k in owners) or "none"
    raise BadParameter(
        f"objectives: expected one that trains the parameter {parameter}, got {names}; change their"
        " patterns, or freeze the parameter in `trainee` by requires_grad_(False)"
    )


def _describe_empty(objective: Objective, trained: NamedParameters) -> str:
    """Return the error for an objective that has nothing to train."""
    wanted = " or ".join(objective.parameters) or "that no other objective names"
    known = ", ".join(list(trained)[:5]) or "none: all are frozen"
    return (
        f"objective {objective.name}: expected a parameter {wanted} to train, got none; parameters"
        f" that are not frozen: {known}"
    )


def make_optimiser(parameters: Sequence[nn.Parameter], options: LoopOptions) -> optim.Optimizer:
    """Return the optimiser of the options. Biases and norms, of one dimension, do not decay."""
    decayed = [p for p in parameters if p.ndim > 1]
    other = [p for p in parameters if p.ndim <= 1]
    groups: list[dict[str, Any]] = []
    if decayed:
        groups.append({"params": decayed, "weight_decay": options.weight_decay})
    if other:
        groups.append({"params": other, "weight_decay": 0.0})
    if options.optimiser == "sgd":
        nesterov = options.momentum > 0
        return optim.SGD(groups, lr=options.lr, momentum=options.momentum, nesterov=nesterov)
    return optim.AdamW(groups, lr=options.lr, betas=(options.momentum, 0.999))


def freeze_frozen_modules(net: nn.Module) -> None:
    """Take the gradients from all parameters of modules of the type `Frozen`."""
    for module in net.modules():
        if isinstance(module, Frozen):
            module.requires_grad_(False)


def frozen_tensors(net: nn.Module, frozen_parameters: Set[str]) -> set[str]:
    """Return the names of these parameters, and of all tensors of modules that have no others."""
    names = set(frozen_parameters)
    for prefix, module in net.named_modules():
        below = {f"{prefix}.{name}" for name, _ in module.named_parameters()}
        if prefix and below and below <= frozen_parameters:
            names |= {f"{prefix}.{name}" for name in module.state_dict()}
    return names


def train_mode(net: nn.Module) -> None:
    """Put a network into training mode, apart from its frozen modules.

    A module is frozen if it has parameters and none of them requires a gradient. Its running
    statistics then stay as they are, and its dropout is off.
    """
    net.train()
    if all(p.requires_grad for p in net.parameters()):
        return
    for module in net.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()
