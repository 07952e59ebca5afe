"""How large a share of images is at least, given that only some images and draws were looked at."""

from __future__ import annotations

import numpy as np

from defend.auditing.context import Floats
from defend.stats import bootstrap, wilson


def least_share(scores: Floats) -> float:
    """Return the lower end of the 95 % interval of the mean of scores (n,).

    It is Wilson's for scores of 0 and 1, and the bootstrap's for shares of draws.
    """
    if np.isin(scores, (0.0, 1.0)).all():
        return wilson(float(scores.sum()), len(scores))[0]
    return bootstrap(scores)[0]
