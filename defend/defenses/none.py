"""No defense: the baseline that every table needs."""

from torch import Tensor

from defend.noise import Noise
from defend.purifier import Card, Purifier


class NoDefense(Purifier):
    """Return the images unchanged."""

    card = Card(paper="none: baseline", gradient="identity", stochastic=False, idempotent=True)

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        """Return x (b, c, h, w) itself."""
        return x
