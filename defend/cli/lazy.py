"""A group of commands that are imported by name, and one line on stderr for whatever the user can get wrong."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

import click

from defend.errors import DefendError, near, one_line

INTERRUPTED = 130  # 128 + SIGINT, as shells count


class UserError(click.ClickException):
    exit_code = 2


class LazyGroup(click.Group):
    """`summaries`: command -> its line in --help, shown without importing `defend.cli.<command>`, which holds a click command of that name."""

    def __init__(self, summaries: Mapping[str, str], **attrs: Any) -> None:
        super().__init__(callback=_help_alone, invoke_without_command=True, **attrs)
        self._summaries = summaries

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self._summaries]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._summaries:
            return None
        found = vars(import_module(f"defend.cli.{cmd_name}")).values()
        return next(c for c in found if isinstance(c, click.Command) and c.name == cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self._summaries and not args[0].startswith("-"):
            raise click.UsageError(
                f"no command {args[0]!r}.{near(args[0], self._summaries)} `defend --help` lists them."
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([*self._summaries.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DefendError as e:
            if ctx.params["debug"]:
                raise
            raise UserError(str(e)) from e

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Exit codes: 0 done, 1 a failed cell or check, 2 the user's input, 3 an unreliable evaluation, 130 interrupted."""
        try:
            with _terminated_is_interrupted():
                sys.exit(super().main(*args, **extra | {"standalone_mode": False}))
        except click.Abort:
            _leave("interrupted", INTERRUPTED)
        except click.ClickException as e:
            _leave(_one_line(e), e.exit_code)


@contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    """SIGTERM is a batch system's Control-C. Python lets the main thread alone say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@click.pass_context
def _help_alone(ctx: click.Context, /, **_: Any) -> None:
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _one_line(e: click.ClickException) -> str:
    path = e.ctx.command_path if isinstance(e, click.UsageError) and e.ctx else "defend"
    hint = (
        f" `{path} --help` says what it takes." if isinstance(e, click.UsageError) and e.ctx else ""
    )
    text = one_line(e.format_message())
    return text + hint


def _leave(text: str, code: int) -> NoReturn:
    click.echo(f"defend: {text}", err=True)
    sys.exit(code)
