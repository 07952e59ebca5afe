"""The state of the global random generators. Components never move it: they draw from `noise`."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def global_states() -> tuple[Any, ...]:
    """Return the states of the generators of torch, numpy and random, to be compared with ==."""
    name, keys, *rest = np.random.get_state()
    torch_state = torch.get_rng_state().tolist()
    return torch_state, name, np.asarray(keys).tolist(), *rest, random.getstate()
