"""What a training run may be told: typed options with defaults, where a misspelt one is an error."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from defend.spec import Configured, typed

R = TypeVar("R", bound="Recipe")


class Recipe(Configured):
    """Options of the loop itself; the recipe of a component adds its own."""

    epochs: float = 20
    batch: int = 128  # images
    optimiser: Literal["sgd", "adamw"] = "sgd"  # sgd: with Nesterov's momentum
    lr: float = 0.1  # the highest learning rate
    momentum: float = 0.9  # AdamW: beta_1
    weight_decay: float = (
        5e-4  # for weights of two or more dimensions; norms and biases are left alone
    )
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    warmup: float = 0.25  # one-cycle: the share of the steps in which the learning rate rises
    clip: float = 0.0  # the highest norm of the whole gradient; 0: none
    ema: float = (
        0.0  # decay of the moving average of the weights, which is then what is kept; 0: none
    )
    keep: Literal["last", "best"] = "last"  # best: of the epochs, on validation images
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: the fastest when measured
    layout: Literal["auto", "contiguous", "channels_last"] = "auto"
    compile: bool = (
        False  # by torch.compile: needs a C++ compiler, and a minute before the first step
    )

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        self.require(self.epochs > 0, "epochs", "> 0")
        self.require(self.batch >= 1, "batch", ">= 1")
        self.require(self.lr > 0, "lr", "> 0")
        self.require(0 <= self.momentum < 1, "momentum", "0 <= momentum < 1")
        self.require(self.weight_decay >= 0, "weight_decay", ">= 0")
        self.require(0 <= self.warmup < 1, "warmup", "a share of the steps, 0 <= warmup < 1")
        self.require(self.clip >= 0, "clip", ">= 0")
        self.require(0 <= self.ema < 1, "ema", "0 <= ema < 1")


def read_recipe(make: type[R], options: dict[str, Any], component: str) -> R:
    """Raises BadParameter, with near names."""
    return make(**typed(make, options, f"the recipe of '{component}'"))
