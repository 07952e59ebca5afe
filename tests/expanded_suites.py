"""Suites on embedded data, expanded into cells."""

from defend.benchmarks.expand import expand
from defend.benchmarks.suite import make_suite

BASE = {"dataset": "digits", "classifiers": ["convnet"], "defenses": ["median"], "n": 8}
OTHER_CLASSIFIER = "convnet:weights=convnet-digits-again"
GRADIENTS = ("declared", "identity", "learned")


def expand_suite(components, **keys):
    """Return (cells, skipped) of the base suite with other keys."""
    return expand(make_suite(BASE | keys), components)


def ladder(components, **keys):
    """Return the cells of the protocol."""
    return expand_suite(components, protocol="ladder-1", **keys)[0]


def levels_of(cells):
    """Return attack -> its levels; at adaptive its gradients."""
    levels = {}
    for cell in cells:
        level = cell.gradient if cell.knowledge == "adaptive" else cell.knowledge
        levels.setdefault(cell.bare_attack, set()).add(level)
    return levels


def surrogates_of(cells):
    """Return the surrogates of the cells that transfer."""
    return {cell.surrogate for cell in cells if cell.knowledge == "transfer"}
