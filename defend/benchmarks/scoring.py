"""What every score rests on: images purified on one draw, the logits behind them, and checks of what they rest on in turn."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from defend.errors import BrokenPurifier
from defend.noise import Noise
from defend.purifier import Purifier

SELECT = 10  # draws on which worst cases are chosen; `score` draws are for reading off


def purified(purifier: Purifier, x: Tensor, noise: Noise) -> Tensor:
    """One draw; x and noise stay as they are, whatever a plugin does to them."""
    with torch.no_grad():
        return purifier.purified(x.clone(), noise.again())


def judged(purifier: Purifier, network: nn.Module, images: Tensor) -> Tensor:
    """Logits (b, classes) of purified images, as many at once as the purifier bears. Raises BrokenPurifier."""
    with torch.no_grad():
        logits = torch.cat([network(part) for part in images.split(purifier.max_batch)])
    check_finite(purifier, logits)
    return logits


def check_finite(purifier: Purifier, logits: Tensor) -> None:
    """Raises BrokenPurifier: the argmax of NaN is class 0, which some images are."""
    if not logits.isfinite().all():
        raise BrokenPurifier(f"{type(purifier).__name__}: logits behind it are not finite")


def check_word(purifier: Purifier, first: Tensor, second: Tensor) -> None:
    """Logits of the same images on two draws. Raises BrokenPurifier: dropping images and scoring by one draw hang on the card's word."""
    if not purifier.card.stochastic and not torch.allclose(first, second, atol=1e-3):
        raise BrokenPurifier(f"{type(purifier).__name__}: its card says stochastic=False, and two draws of the same images differ")


def check_memory(purifier: Purifier, used: Tensor, fresh: Tensor) -> None:
    """Logits of the same images on the same draw, behind the one that was attacked and one loaded anew. Raises BrokenPurifier: a defense that
    remembers the clean image, or the steps towards it, answers an attack's last image with what it was before."""
    if not torch.allclose(used, fresh, atol=1e-3):
        raise BrokenPurifier(f"{type(purifier).__name__}: one loaded anew answers otherwise: it remembers what it saw; let purify depend on x and noise alone")
