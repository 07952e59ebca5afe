"""What every score rests on: images purified on one draw, the logits behind them, and checks of what they rest on in turn."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from defend.errors import BrokenPurifier
from defend.noise import Noise
from defend.purifier import Purifier

ALONE = 8  # images that are purified one by one, too
SELECT = 10  # draws on which worst cases are chosen; `score` draws are for reading off


def purified(purifier: Purifier, x: Tensor, noise: Noise) -> Tensor:
    """One draw; x and noise stay as they are, whatever a plugin does to them."""
    with torch.no_grad():
        return purifier.purified(x.clone(), noise.again())


def logits_after_purify(purifier: Purifier, network: nn.Module, images: Tensor) -> Tensor:
    """Logits (b, classes) of purified images, as many at once as the purifier bears. Raises BrokenPurifier."""
    with torch.no_grad():
        logits = torch.cat([network(part) for part in images.split(purifier.max_batch)])
    check_finite(purifier, logits)
    return logits


def check_finite(purifier: Purifier, logits: Tensor) -> None:
    """Raises BrokenPurifier: the argmax of NaN is class 0, which some images are."""
    if not logits.isfinite().all():
        raise BrokenPurifier(f"{type(purifier).__name__}: logits behind it are not finite")


def check_declared_deterministic(purifier: Purifier, first: Tensor, second: Tensor) -> None:
    """Logits of the same images on two draws. Raises BrokenPurifier: dropping images and scoring by one draw hang on the card's word."""
    if not purifier.card.stochastic and not same(first, second):
        raise BrokenPurifier(
            f"{type(purifier).__name__}: its card says stochastic=False, and two draws of the same images differ"
        )


def check_gradient_mode(purifier: Purifier, watched: Tensor, alone: Tensor) -> None:
    """Logits of the same images on the same draws, with a gradient and without. Raises BrokenPurifier where more than one image in twenty
    gets another label: what is attacked is not what is scored. A few may round otherwise."""
    moved = int((watched.argmax(1) != alone.argmax(1)).sum())
    if moved > max(1, len(alone) // 20):
        raise BrokenPurifier(
            f"{type(purifier).__name__}: {moved} of {len(alone)} images get another label where a gradient is asked for; let purify not look"
        )


def same(first: Tensor, second: Tensor) -> bool:
    """Logits, but for rounding."""
    return torch.allclose(first, second, atol=1e-3)


def check_batch_independence(purifier: Purifier, x: Tensor, images: Tensor, noise: Noise) -> None:
    """images: what became of x (b, ...) on this noise. Raises BrokenPurifier where most of the first are purified otherwise alone: attacks
    drop images and score them in other company, and one that is deployed sees whoever comes. A few may round otherwise."""
    rows = [slice(i, i + 1) for i in range(min(ALONE, len(x)))]
    moved = sum(
        not torch.allclose(purified(purifier, x[i], noise.take(i)), images[i], atol=1e-3)
        for i in rows
    )
    if 2 * moved > len(rows):
        raise BrokenPurifier(
            f"{type(purifier).__name__}: {moved} of {len(rows)} images are purified otherwise alone than in their batch; "
            "let each be purified by itself, without statistics of its batch, as of a batch norm in training mode"
        )
