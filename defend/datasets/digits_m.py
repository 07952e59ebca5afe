"""digits-m: digits blended into photographs, |crop - digit|: MNIST-M of Ganin, Lempitsky, arXiv:1409.7495, section 4, from what scikit-learn ships.

Everything is integer arithmetic on grey levels 0..255 and hashes of bytes, so an image is the same on every machine.
"""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor

from defend.dataset import ArrayDataset, DatasetCard, Split
from defend.datasets import uci
from defend.noise import Noise

SIZE, INNER = 32, 28
COPIES: dict[Split, int] = {
    "train": 8,
    "val": 6,
    "test": 2,
}  # fixed backgrounds for each digit; enough that every split passes 1,000


class DigitsM(ArrayDataset):
    """UCI digits in front of crops of two photographs, RGB 32x32. `stream` draws fresh backgrounds without end."""

    card = DatasetCard(
        source="arXiv:1409.7495",
        licence="digits CC BY 4.0, photographs CC BY 2.0",
        claim={"Linf": 16 / 255},
        distinct={"train": 1047, "val": 175, "test": 575},  # digits
    )
    channels = 3
    size = SIZE
    names = tuple("0123456789")
    checksum = "bf163e2c052ceafd"  # of the first 64 test images and labels

    def arrays(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Every digit once, then every digit once more: the first n images share no digit for as long as possible."""
        digits, labels = enlarged(split)
        copies = COPIES[split]
        choices = torch.tensor(
            np.array(
                [
                    _choice(d.numpy().tobytes() + bytes([copy]))
                    for copy in range(copies)
                    for d in digits
                ]
            )
        )
        return blend(crops(split, choices), digits.repeat(copies, 1, 1)).numpy(), np.tile(
            labels.numpy(), copies
        )

    def stream(self, split: Split, noise: Noise) -> tuple[Tensor, Tensor]:
        """x (b, 3, 32, 32), y (b,) on the device of the noise: digits of the split at random, each before a fresh crop."""
        u = noise.uniform(torch.empty(len(noise), 4, dtype=torch.float64, device=noise.device))
        digits, labels = (t.to(noise.device) for t in enlarged(split))
        which = (u[:, 3] * len(digits)).long()
        return blend(crops(split, u[:, :3]), digits[which]).float().div_(255), labels[which]


@cache
def enlarged(split: Split) -> tuple[Tensor, Tensor]:
    """Digits uint8 (n, 32, 32): 8x8 scaled to 28x28, bilinear, and padded; labels int64 (n,)."""
    x, y = uci.digits(split)
    w = _bilinear(x.shape[-1], INNER)
    top = 4 * INNER**2 * uci.TOP  # what a full stroke gives after both weightings
    scaled = (w @ x.astype(np.int64) @ w.T * 510 + top) // (
        2 * top
    )  # the nearest of 0..255, in integers
    return torch.from_numpy(
        np.pad(scaled, [(0, 0), *[((SIZE - INNER) // 2,) * 2] * 2]).astype(np.uint8)
    ), torch.from_numpy(y)


def _bilinear(n: int, m: int) -> np.ndarray:
    """Weights (m, n) in units of 1 / 2m that stretch n samples to m; half-pixel centres, the border repeated."""
    at = np.clip(
        n * (2 * np.arange(m) + 1) - m, 0, 2 * m * (n - 1)
    )  # position of sample i, in units of 1 / 2m
    w = np.zeros((m, n + 1), np.int64)
    w[np.arange(m), at // (2 * m)] = 2 * m - at % (2 * m)
    w[np.arange(m), at // (2 * m) + 1] = at % (2 * m)
    return w[:, :n]


@cache
def photographs(split: Split) -> Tensor:
    """uint8 (2, h, w / 2, 3): the left halves for training and validation, the right halves for test."""
    photos = np.stack(load_sample_images().images)
    half = photos.shape[2] // 2
    return torch.from_numpy(
        np.ascontiguousarray(photos[:, :, half:] if split == "test" else photos[:, :, :half])
    )


def crops(split: Split, choice: Tensor) -> Tensor:
    """choice (b, 3) in [0, 1): photograph, top, left. uint8 (b, 32, 32, 3)."""
    photos = photographs(split).to(choice.device)
    ends = torch.tensor(
        [photos.shape[0], photos.shape[1] - SIZE + 1, photos.shape[2] - SIZE + 1],
        device=choice.device,
    )
    photo, top, left = (choice * ends).long().unbind(1)
    steps = torch.arange(SIZE, device=choice.device)
    return photos[
        photo[:, None, None], (top[:, None] + steps)[:, :, None], (left[:, None] + steps)[:, None]
    ]


def blend(crop: Tensor, digit: Tensor) -> Tensor:
    """|crop - digit| in each channel: uint8 (b, h, w, 3) and (b, h, w) -> (b, 3, h, w)."""
    return (
        (crop.short() - digit.short()[..., None])
        .abs()
        .to(torch.uint8)
        .permute(0, 3, 1, 2)
        .contiguous()
    )


def _choice(data: bytes) -> list[float]:
    digest = hashlib.blake2b(data, digest_size=12, person=b"digits-m").digest()
    return [int.from_bytes(digest[i : i + 4], "big") / 2**32 for i in (0, 4, 8)]
