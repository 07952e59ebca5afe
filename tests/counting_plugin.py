"""Purifiers that count the images that they purify: tests compare these counts with budgets."""

from defend.purifier import Card, Purifier

PURIFIED = {"images": 0}


class Counts(Purifier):
    """x' = x, counted."""

    card = Card(paper="none: it only counts", gradient="exact", stochastic=False)

    def purify(self, x, noise):
        PURIFIED["images"] += len(x)
        return x * 1.0


class CountsAndDraws(Purifier):
    """Add a little noise, counted."""

    card = Card(paper="none: it only counts", gradient="exact", stochastic=True)

    def purify(self, x, noise):
        PURIFIED["images"] += len(x)
        return (x + 0.01 * noise.normal(x)).clamp(0, 1)
