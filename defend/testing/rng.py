"""The global generators, which components leave alone: they draw from `noise`."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def global_states() -> tuple[Any, ...]:
    """Of torch, numpy and random, to be compared with ==."""
    name, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), name, np.asarray(keys).tolist(), *rest, random.getstate()
