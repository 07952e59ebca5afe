"""The errors that a user can cause: one class per remedy.

A message names what was expected, what came and what to do.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable


class DefendError(Exception):
    """Base class.

    The command line prints these errors without a traceback and exits with status 2.
    """


class UnknownName(DefendError, KeyError):
    """A name that nothing is registered under."""

    __str__ = Exception.__str__  # KeyError would print the repr of the message


class AmbiguousName(DefendError, KeyError):
    """A name that several packages use."""

    __str__ = Exception.__str__


class BrokenPlugin(DefendError, ImportError):
    """An installed component that cannot be imported."""


class MissingPackage(DefendError, ImportError):
    """A package that a component needs and that is not installed."""


class BadParameter(DefendError, ValueError):
    """A field, an option or an argument with a value that cannot work."""


class BadSpec(DefendError, ValueError):
    """A spec that cannot be parsed."""


class BadWeights(DefendError, ValueError):
    """Weights that are missing, damaged, ambiguous or of another component."""


class MissingData(DefendError, FileNotFoundError):
    """A data set whose files are not on disk."""


class Mismatch(DefendError, ValueError):
    """Components that do not fit together: other channels, size, classes or norms."""


class BrokenAttack(DefendError, RuntimeError):
    """An attack that leaves its budget, the box or the finite numbers. The unit fails."""


class BrokenPurifier(DefendError, RuntimeError):
    """A purifier that breaks its contract, so that the unit fails.

    It writes into its input, returns a wrong shape or non-finite values, or contradicts its card.
    """


class NotApplicable(Exception):
    """A check that says nothing about the component at hand; the message is the reason.

    It is neither a pass nor a failure, and no error of the user.
    """


def one_line(text: object) -> str:
    """Return the text on one line, without runs of spaces.

    The text of a foreign exception then fits into one of our messages.
    """
    return " ".join(str(text).split())


def count_of(number: int, noun: str) -> str:
    """Return "1 cell", "2 cells" or "1,000 cells"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def printable(text: object) -> str:
    """Return the text with \\xff in place of bytes that are no UTF-8, as file names may hold."""
    return os.fsencode(str(text)).decode("utf-8", "backslashreplace")


def suggest_names(name: str, candidates: Iterable[str]) -> str:
    """Return " Did you mean x?" with up to three candidates that are close to the name.

    Return "" if none is close. The text ends an error about an unknown name.
    """
    close = difflib.get_close_matches(name, list(candidates), n=3)
    if not close:
        return ""
    return f" Did you mean {', '.join(close)}?"
