"""The state of the global random generators. Components never move it: they draw from `noise`."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def global_states() -> tuple[Any, ...]:
    """Return the states of the generators of torch, numpy and random, to be compared with ==."""
    torch_state = torch.get_rng_state().tolist()
    numpy_state = [np.asarray(value).tolist() for value in np.random.get_state()]
    return torch_state, numpy_state, random.getstate()
