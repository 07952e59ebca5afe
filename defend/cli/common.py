"""What the commands share: options, the search for the component that is meant, and the console."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import click

from defend.errors import AmbiguousName, BadParameter, UnknownName, suggest_names
from defend.files import user_path
from defend.registry import GROUPS, REGISTRY, Kind
from defend.spec import Spec, parse

if TYPE_CHECKING:
    from rich.console import Console


class UserPath(click.Path):
    """A path of the command line as a `Path`, with ~ as the home folder."""

    def __init__(self, dir_okay: bool = True) -> None:
        super().__init__(path_type=Path, dir_okay=dir_okay)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path. Raise BadParameter for the home folder of an unknown user."""
        path = super().convert(user_path(value), param, ctx)
        return Path(str(path))


PLURALS: dict[str, Kind] = {f"{kind}s": kind for kind in GROUPS}
_TRAILING_BLANKS = re.compile(r"[ ]+(?=\n)")
LOG_WIDTH = 1000  # columns if the output is no terminal, so that no table is cut in a log

device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda|cuda:1",
    help="Where to compute. auto: the first GPU, or the CPU if there is none.",
)
data_root_option = click.option(
    "--data-root",
    metavar="DIR",
    help="The folder of the data sets. Default: DEFEND_DATA, or the user's cache folder.",
)
weights_dataset_option = click.option(
    "--dataset",
    metavar="NAME",
    help="The data set whose weights are loaded with weights=auto.",
)


class _Trimmed:
    """Stdout without the blanks that pad the last column of a table."""

    def write(self, text: str) -> int:
        """Write lines, which the console gives as a whole."""
        sys.stdout.write(_TRAILING_BLANKS.sub("", text))
        return len(text)

    def flush(self) -> None:
        """Flush stdout."""
        sys.stdout.flush()

    def isatty(self) -> bool:
        """Return False: a terminal needs no trimming."""
        return False


def make_console() -> Console:
    """Return a console on stdout without markup, wide enough for any table if it is a log."""
    from rich.console import Console

    is_terminal = sys.stdout.isatty()
    return Console(
        file=sys.stdout if is_terminal else cast("IO[str]", _Trimmed()),
        width=None if is_terminal else LOG_WIDTH,
        highlight=False,
        markup=False,
        soft_wrap=not is_terminal,
    )


def resolve_component(words: tuple[str, ...], usage: str) -> tuple[Kind, str]:
    """Return the kind and the spec that the words [KIND] SPEC mean.

    The kind may be left out if only one kind has a component of that name. `usage` is quoted in
    the errors. Raises BadParameter, UnknownName and AmbiguousName.
    """
    if len(words) == 2:
        return parse_kind(words[0]), words[1]
    if len(words) != 1:
        raise BadParameter(
            f"expected [KIND] NAME, got {' '.join(words) or 'nothing'}; write `{usage}`"
        )
    spec = words[0]
    return _only_kind(parse(spec)[0].name, spec, usage), spec


def _only_kind(name: str, spec: str, usage: str) -> Kind:
    kinds = REGISTRY.kinds_of(name)
    if len(kinds) == 1:
        return kinds[0]
    if kinds:
        example = usage.replace("[KIND] NAME", f"{kinds[0]} {spec}")
        raise AmbiguousName(
            f"'{name}' names a component of several kinds: {', '.join(kinds)}; give the kind, as in"
            f" `{example}`"
        )
    if Spec(name).file is not None:
        example = usage.replace("[KIND] NAME", f"classifier {spec}")
        raise AmbiguousName(f"'{name}': expected its kind before it, as in `{example}`")
    known = [entry.name for kind in GROUPS for entry in REGISTRY.entries(kind)]
    raise UnknownName(
        f"unknown component '{name}'.{suggest_names(name, known)}"
        f" `defend list` shows all {len(known)}."
    )


def parse_kind(word: str) -> Kind:
    """Return the kind that "defense" or "defenses" names. Raises UnknownName."""
    kind = PLURALS.get(word, word)
    if kind not in GROUPS:
        raise UnknownName(
            f"unknown kind '{word}': expected {', '.join(GROUPS)}.{suggest_names(word, GROUPS)}"
        )
    return kind
