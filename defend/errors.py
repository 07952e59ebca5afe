"""Every error a user can cause. One class per fix; the message says what was wanted, what came, and what to type next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DefendError(Exception):
    """Base class. The command line prints these without a traceback and exits with status 2."""


class UnknownName(DefendError, KeyError):
    __str__ = Exception.__str__  # KeyError would print the repr of the message


class AmbiguousName(DefendError, KeyError):
    __str__ = Exception.__str__


class BrokenPlugin(DefendError, ImportError):
    pass


class BadParameter(DefendError, ValueError):
    pass


class BadSpec(DefendError, ValueError):
    pass


class BadWeights(DefendError, ValueError):
    pass


class MissingData(DefendError, FileNotFoundError):
    pass


class Mismatch(DefendError, ValueError):
    """Components that do not fit together: channels, size, classes, norms."""


class BrokenAttack(DefendError, RuntimeError):
    """An attack that left its budget, the box, or the finite numbers. Fails its unit loudly."""


class BrokenPurifier(DefendError, RuntimeError):
    """A purifier that writes into its input, gives no finite numbers, or is not what its card says. Fails its unit loudly."""


def one_line(said: object) -> str:
    """Without breaks and runs of spaces: other people's exceptions, in a message of ours."""
    return " ".join(str(said).split())


def near(name: str, known: Iterable[str]) -> str:
    """ " Did you mean x?", or nothing: for the end of a sentence about an unknown name."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f" Did you mean {', '.join(close)}?" if close else ""
