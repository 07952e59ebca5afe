"""Make the random numbers of an ART attack repeatable: ART draws from global generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from defend.noise import Noise


class _SeededRandomState(np.random.RandomState):
    """Stand in for `np.random.RandomState` during an attack.

    ART's HopSkipJump and BoundaryAttack create one without a seed, which would take fresh entropy.
    Here it takes its seed from numpy's global generator.
    """

    def __init__(self, seed: Any = None) -> None:
        super().__init__(np.random.randint(2**31) if seed is None else seed)


@contextmanager
def seeded_generators(noise: Noise) -> Iterator[None]:
    """Seed the global generators from the first image's noise, and restore them at the end."""
    like = torch.zeros(1, 1, dtype=torch.float32, device=noise.device)
    seed = int(noise.take(slice(0, 1)).uniform(like) * 2**24)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    numpy_class = np.random.RandomState
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(gpus)):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            np.random.RandomState = _SeededRandomState  # type: ignore[misc]
            yield
        finally:
            np.random.RandomState = numpy_class  # type: ignore[misc]
            np.random.set_state(numpy_state)
            random.setstate(python_state)
