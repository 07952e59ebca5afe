"""The options of the training loop: typed fields with defaults."""

from __future__ import annotations

from typing import Literal

from defend.spec import Configured


class LoopOptions(Configured):
    """Options of the training loop. A recipe adds its own."""

    epochs: float = 20
    minutes: float = 0.0  # of wall clock, in which the whole schedule fits; 0: `epochs` decides
    batch: int = 128  # images
    optimiser: Literal["sgd", "adamw"] = "sgd"  # sgd has Nesterov momentum
    lr: float = 0.1  # the highest learning rate
    momentum: float = 0.9  # for adamw: beta_1
    weight_decay: float = 5e-4  # of weights with two or more dimensions; norms and biases: none
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    warmup: float = 0.25  # one-cycle: the share of the steps in which the learning rate rises
    clip: float = 0.0  # the largest norm of the whole gradient; 0: no clipping
    ema: float = 0.0  # decay of the moving average of the weights, which is then stored; 0: none
    keep: Literal["last", "best"] = "last"  # best: the best epoch on validation images
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: measured, the fastest
    layout: Literal["auto", "contiguous", "channels_last", "winograd"] = "auto"
    compile: bool = False  # with torch.compile, which needs a C++ compiler and a minute to start

    def __post_init__(self) -> None:
        self.classifiers: dict[str, str] = {}  # name -> sha256, of those that took part
        self.loaded: dict[str, dict[str, str]] = {}  # "kind spec" of a component -> its files
        self.share = 0.0  # of the schedule that is behind the step at hand, set by the loop
        self.validate()

    def validate(self) -> None:
        """Raise BadParameter if a field is out of its range."""
        self.require(self.epochs > 0, "epochs", "> 0")
        self.require(self.minutes >= 0, "minutes", ">= 0")
        self.require(self.batch >= 1, "batch", ">= 1")
        self.require(self.lr > 0, "lr", "> 0")
        self.require(0 <= self.momentum < 1, "momentum", "0 <= momentum < 1")
        self.require(self.weight_decay >= 0, "weight_decay", ">= 0")
        self.require(0 <= self.warmup < 1, "warmup", "a share of the steps, 0 <= warmup < 1")
        self.require(self.clip >= 0, "clip", ">= 0")
        self.require(0 <= self.ema < 1, "ema", "0 <= ema < 1")
        is_traced = self.compile and self.layout == "winograd"
        self.require(not is_traced, "layout", "another layout than winograd beside compile=true")
