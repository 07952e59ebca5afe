"""Which precision and layout train fastest here: measured on the network and batch at hand, never assumed."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from defend.learned import arrange, autocast
from defend.training.recipe import Recipe

WORTH = 1.1  # bfloat16 rounds: only where it is at least this much faster than float32
TRIES = 3


@dataclass(frozen=True)
class Plan:
    precision: str
    layout: str


def measure(
    net: nn.Module, recipe: Recipe, loss: Callable[[nn.Module], Tensor], device: torch.device
) -> Plan:
    """The fastest plan that the recipe allows, by forward and backward passes of a copy of the network."""
    precisions = ("float32", "bfloat16") if recipe.precision == "auto" else (recipe.precision,)
    layouts = ("contiguous", "channels_last") if recipe.layout == "auto" else (recipe.layout,)
    plans = [Plan(p, a) for p in precisions for a in layouts]
    if len(plans) == 1:
        return plans[0]
    nets = {plan: arranged(net, plan) for plan in plans}
    times: dict[Plan, list[float]] = {plan: [] for plan in plans}
    for _ in range(TRIES + 1):  # in turns: whatever else the machine does then hits all plans alike
        for plan in plans:
            times[plan].append(_seconds(nets[plan], plan, loss, device))
    return min(
        plans,
        key=lambda plan: min(times[plan][1:]) * (WORTH if plan.precision == "bfloat16" else 1),
    )  # the first pass warms up


def arranged(net: nn.Module, plan: Plan) -> nn.Module:
    """A copy in the plan's layout."""
    net = copy.deepcopy(net).train()
    arrange(net, plan.layout)
    return net


def _seconds(
    net: nn.Module, plan: Plan, loss: Callable[[nn.Module], Tensor], device: torch.device
) -> float:
    """Of one forward and backward pass."""
    start = time.perf_counter()
    with autocast(device, plan.precision):
        value = loss(net)
    value.backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
