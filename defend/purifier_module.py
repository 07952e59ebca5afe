"""A purifier as a torch module, for use without ART."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)


def dtype_of(module: nn.Module) -> torch.dtype | None:
    """Return the type of the first parameter of real numbers, None if there is none."""
    floating = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next(floating, None)


class PurifierModule(nn.Module):
    """A purifier as a module that registers its networks, so that `.to` and `state_dict` work.

    Images in 16 bits are purified in 32, and returned in 16: codecs and medians have no other
    arithmetic, and a network stays what was measured. So `.half()` and `.bfloat16()` leave the
    networks as they are.
    """

    def __init__(self, purifier: Any) -> None:
        super().__init__()
        self.purifier = purifier
        self.networks = nn.ModuleList(purifier.networks())

    def train(self, mode: bool = True) -> PurifierModule:
        """Stay in eval mode: what is deployed does not change when a model around it is trained."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PurifierModule:
        """Move the networks, as `.to` does, but never into 16 bits."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            is_halved = moved.dtype in HALF and tensor.dtype not in HALF
            return tensor.to(moved.device) if is_halved else moved

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor) -> Tensor:
        """Return x purified. Compilers leave it as it is: the gradients are made by hand."""
        wanted = dtype_of(self.networks) or (torch.float32 if x.dtype in HALF else x.dtype)
        purified: Tensor = self.purifier.purified(x.to(wanted) if x.is_floating_point() else x)
        return purified.to(x.dtype)
