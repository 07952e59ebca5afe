"""digits-m: digits blended into photographs, |crop - digit|, from what scikit-learn ships.

The recipe is that of MNIST-M: Ganin, Lempitsky, arXiv:1409.7495, section 4. Everything is integer
arithmetic on grey levels 0..255 and hashes of bytes, so an image is the same on every machine.
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

SIZE = 32  # height and width of the images
DIGIT_SIZE = 28  # height and width of a digit inside its border

# Fixed backgrounds for each digit: enough that every split has more than 1,000 images.
COPIES: dict[Split, int] = {"train": 8, "val": 6, "test": 2}


class DigitsM(ArrayDataset):
    """Provide UCI digits in front of crops of two photographs, RGB 32x32.

    `stream` draws fresh backgrounds without end.
    """

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
        """Return x uint8 (n, 3, 32, 32) and y int64 (n,).

        Every digit comes once, then every digit comes once more, and so on: the first n images
        repeat no digit for as long as possible.
        """
        digits, labels = enlarge_digits(split)
        copies = COPIES[split]
        x = blend(cut_crops(split, fixed_choices(digits, copies)), digits.repeat(copies, 1, 1))
        return x.numpy(), np.tile(labels.numpy(), copies)

    def stream(self, split: Split, noise: Noise) -> tuple[Tensor, Tensor]:
        """Return x (b, 3, 32, 32) and y (b,) on the device of the noise.

        They are random digits of the split, each in front of a fresh crop.
        """
        u = noise.uniform(torch.empty(len(noise), 4, dtype=torch.float64, device=noise.device))
        digits, labels = (t.to(noise.device) for t in enlarge_digits(split))
        rows = (u[:, 3] * len(digits)).long()
        x = blend(cut_crops(split, u[:, :3]), digits[rows])
        return x.float().div_(255), labels[rows]


@cache
def enlarge_digits(split: Split) -> tuple[Tensor, Tensor]:
    """Return digits uint8 (n, 32, 32), scaled bilinearly and padded, and labels int64 (n,)."""
    x, y = uci.read_digits(split)
    w = bilinear_weights(x.shape[-1], DIGIT_SIZE)
    full_stroke = 4 * DIGIT_SIZE**2 * uci.MAX_LEVEL  # the highest level after both weightings
    weighted = w @ x.astype(np.int64) @ w.T
    scaled = (weighted * 510 + full_stroke) // (2 * full_stroke)  # rounded to 0..255, in integers
    border = (SIZE - DIGIT_SIZE) // 2
    padded = np.pad(scaled, [(0, 0), (border, border), (border, border)])
    return torch.from_numpy(padded.astype(np.uint8)), torch.from_numpy(y)


def bilinear_weights(n: int, m: int) -> np.ndarray:
    """Return weights (m, n), in units of 1 / 2m, that stretch n samples to m.

    Pixels have half-pixel centres, and the border is repeated.
    """
    # The position of each output among the samples, in units of 1 / 2m of a sample.
    positions = np.clip(n * (2 * np.arange(m) + 1) - m, 0, 2 * m * (n - 1))
    sample, distance = positions // (2 * m), positions % (2 * m)
    weights = np.zeros((m, n + 1), np.int64)
    weights[np.arange(m), sample] = 2 * m - distance
    weights[np.arange(m), sample + 1] = distance
    return weights[:, :n]


@cache
def read_photographs(split: Split) -> Tensor:
    """Return halves of the photographs, uint8 (2, h, w / 2, 3).

    Training and validation have the left halves, test has the right halves.
    """
    photos = np.stack(load_sample_images().images)
    half = photos.shape[2] // 2
    side = photos[:, :, half:] if split == "test" else photos[:, :, :half]
    return torch.from_numpy(np.ascontiguousarray(side))


def fixed_choices(digits: Tensor, copies: int) -> Tensor:
    """Return the choices (copies n, 3) of crops for the digits, by hashes of digit and copy."""
    choices = []
    for copy in range(copies):
        for digit in digits:
            choices.append(hash_fractions(digit.numpy().tobytes() + bytes([copy])))
    return torch.tensor(np.array(choices))


def hash_fractions(data: bytes) -> list[float]:
    """Return three numbers in [0, 1), each from 32 bits of a hash of the data."""
    digest = hashlib.blake2b(data, digest_size=12, person=b"digits-m").digest()
    return [int.from_bytes(digest[i : i + 4], "big") / 2**32 for i in (0, 4, 8)]


def cut_crops(split: Split, choices: Tensor) -> Tensor:
    """Return crops uint8 (b, 32, 32, 3) of the photographs.

    choices (b, 3) in [0, 1): the photograph, the top row and the first column.
    """
    photos = read_photographs(split).to(choices.device)
    counts = [photos.shape[0], photos.shape[1] - SIZE + 1, photos.shape[2] - SIZE + 1]
    photo, row, column = (choices * torch.tensor(counts, device=choices.device)).long().unbind(1)
    offsets = torch.arange(SIZE, device=choices.device)
    rows, columns = row[:, None] + offsets, column[:, None] + offsets
    return photos[photo[:, None, None], rows[:, :, None], columns[:, None]]


def blend(crops: Tensor, digits: Tensor) -> Tensor:
    """Return |crop - digit| in each channel, uint8 (b, 3, h, w).

    crops: uint8 (b, h, w, 3). digits: uint8 (b, h, w).
    """
    distance = (crops.short() - digits.short()[..., None]).abs()
    return distance.to(torch.uint8).permute(0, 3, 1, 2).contiguous()
