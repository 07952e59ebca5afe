"""Checks that the networks of a purifier are found, frozen and registered. Each check takes one
purifier.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from defend.purifier import Purifier
from defend.testing.defense_setup import BATCH, purify
from defend.testing.runner import NotApplicable, reads_only


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module that holds parameters or buffers."""

    module: nn.Module  # held here, so that no other object gets its id
    was_training: bool


@contextmanager
def recorded_module_calls() -> Iterator[list[ModuleCall]]:
    """Yield a list that grows at each call of a module with parameters or buffers, in any code.

    Modules that hold nothing (an activation, a pooling) are ignored. module.forward(x) calls no
    hook: what it computes with parameters is seen by `RecordedParameters`.
    """
    calls: list[ModuleCall] = []

    def record(module: nn.Module, _: object) -> None:
        if next(tensors_of(module), None) is not None:
            calls.append(ModuleCall(module, module.training))

    handle = register_module_forward_pre_hook(record)
    try:
        yield calls
    finally:
        handle.remove()


class RecordedParameters(TorchFunctionMode):
    """Record each nn.Parameter that any function of torch gets while this mode is active."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters: dict[int, nn.Parameter] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the function, after a look at its arguments and at lists among them."""
        named = kwargs or {}
        for value in chain(args, named.values()):
            for item in value if isinstance(value, list | tuple) else (value,):
                if isinstance(item, nn.Parameter):
                    self.parameters[id(item)] = item
        return func(*args, **named)


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters and the buffers of a module and of those inside it."""
    yield from chain(module.parameters(), module.buffers())


def record_purification(p: Purifier) -> tuple[list[ModuleCall], list[nn.Parameter]]:
    """Return the module calls and the parameters of a purification and of its backward pass."""
    with recorded_module_calls() as calls, RecordedParameters() as used:
        output = purify(p, p.example(BATCH).requires_grad_())
        if output.requires_grad:
            output.sum().backward()
    return calls, list(used.parameters.values())


@reads_only
def check_networks_are_found(p: Purifier) -> None:
    """Fail if `purify` calls a network, or uses a parameter, that networks() does not return."""
    calls, parameters = record_purification(p)
    known = {id(t) for network in p.networks() for t in tensors_of(network)}
    escaped: list[str] = []
    for call in calls:
        tensors = {id(t) for t in tensors_of(call.module)}
        if not tensors <= known:
            escaped.append(type(call.module).__qualname__)
            known |= tensors  # so that its parts are not named, too
    shapes = [tuple(parameter.shape) for parameter in parameters if id(parameter) not in known]
    escaped += [f"a parameter of shape {shape}" for shape in shapes]
    assert not escaped, (
        f"purify uses {', '.join(dict.fromkeys(escaped))}, which networks() does not return, so "
        "that it is not frozen, moved to a device or hashed; hold it in an attribute of the "
        "purifier"
    )


@reads_only
def check_networks_are_frozen(p: Purifier) -> None:
    """Fail if a network can be trained, runs or stays in training mode, keeps gradients, or is
    missing from as_module().
    """
    calls, _ = record_purification(p)
    if not p.networks():
        raise NotApplicable("it holds no network")
    assert not any(call.was_training for call in calls), (
        "a network is in training mode while it purifies, so that its output depends on the "
        "batch; do not call train()"
    )
    fail_in_training_mode(p, "after a purification; do not call train()")
    module = p.as_module().train()
    fail_in_training_mode(p, "after as_module().train(); wrap it in Frozen")
    assert not any(w.requires_grad for w in module.parameters()), (
        "a parameter requires a gradient after a purification; do not call requires_grad_()"
    )
    assert all(w.grad is None for w in module.parameters()), (
        "a parameter keeps a gradient after a purification; differentiate by torch.autograd.grad "
        "with respect to the image alone"
    )
    held = {id(t) for network in p.networks() for t in tensors_of(network)}
    registered = {id(t) for t in tensors_of(module)}
    assert held == registered, "as_module() does not register the tensors of networks()"


def fail_in_training_mode(p: Purifier, moment: str) -> None:
    """Raise AssertionError if a network, or a part of one, is in training mode."""
    modules = [m for network in p.networks() for m in network.modules()]
    assert not any(m.training for m in modules), (
        f"a network, or a part of one, is in training mode {moment}"
    )
