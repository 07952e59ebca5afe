"""What commands share: which component is meant, and how tables are printed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from defend.errors import AmbiguousName, BadParameter, UnknownName, near
from defend.registry import GROUPS, REGISTRY, Kind
from defend.spec import parse

if TYPE_CHECKING:
    from rich.console import Console

PLURALS = {f"{kind}s": kind for kind in GROUPS}


def console(stderr: bool = False) -> Console:
    """Rich's console; as wide as the table where the output is no terminal, so that nothing is cut in a log."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(
        file=stream,
        width=None if stream.isatty() else 1000,
        highlight=False,
        markup=False,
        soft_wrap=not stream.isatty(),
    )


def component(words: tuple[str, ...], usage: str) -> tuple[Kind, str]:
    """(kind, spec) from [KIND] SPEC. The kind may be left out where one kind alone has the name. Raises DefendError."""
    if len(words) == 2:
        return kind_of(words[0]), words[1]
    if len(words) != 1:
        raise BadParameter(
            f"expected [KIND] NAME, got {' '.join(words) or 'nothing'}: write `{usage}`"
        )
    name = parse(words[0])[0].name
    kinds = REGISTRY.kinds_of(name)
    if not kinds:
        known = [e.name for kind in GROUPS for e in REGISTRY.entries(kind)]
        raise UnknownName(
            f"unknown component '{name}'.{near(name, known)} `defend list` shows all {len(known)}."
        )
    if len(kinds) > 1:
        say = usage.replace("[KIND] NAME", f"{kinds[0]} {words[0]}")
        raise AmbiguousName(
            f"'{name}' names a component of several kinds: {', '.join(kinds)}. Say which: `{say}`."
        )
    return kinds[0], words[0]


def kind_of(word: str) -> Kind:
    """The kind of "defense" and of "defenses". Raises UnknownName."""
    kind = PLURALS.get(word, word)
    if kind not in GROUPS:
        raise UnknownName(
            f"unknown kind '{word}': expected {', '.join(GROUPS)}.{near(word, GROUPS)}"
        )
    return kind
