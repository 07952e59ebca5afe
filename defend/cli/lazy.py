"""A group of commands that are imported by name, and one line on stderr for each user's error."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

import click

from defend.cli.streams import lossy_streams
from defend.errors import DefendError, one_line, printable, suggest_names
from defend.plugin_checks import DEBUG, locate_plugin

LOST_OUTPUT = 1
# A disk that is full or read-only, wherever a command was writing.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
INTERRUPTED = 130  # 128 + SIGINT, the exit code that shells use


class UserError(click.ClickException):
    """An error that the user can correct."""

    exit_code = 2


class LazyGroup(click.Group):
    """A group of which only the command in use is imported.

    `summaries` maps each command to its line in --help. The module `defend.cli.<command>` holds a
    click command of that name.
    """

    def __init__(self, summaries: Mapping[str, str], **attrs: Any) -> None:
        super().__init__(callback=_print_help, invoke_without_command=True, **attrs)
        self._summaries = summaries

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._summaries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._summaries:
            return None
        module = import_module(f"defend.cli.{cmd_name}")
        commands = [v for v in vars(module).values() if isinstance(v, click.Command)]
        return next(command for command in commands if command.name == cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self._summaries and not args[0].startswith("-"):
            raise click.UsageError(
                f"no command {args[0]!r}.{suggest_names(args[0], self._summaries)}"
                " `defend --help` lists them."
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self._summaries.items()))

    def invoke(self, ctx: click.Context) -> Any:
        if ctx.params["debug"]:
            with _debugging():
                return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except DefendError as e:
            raise UserError(str(e)) from e
        except OSError as e:
            if e.errno not in _DISK_ERRORS:
                raise _name_plugin(e) from e
            place = f"{e.filename}: " if e.filename else ""
            raise UserError(f"{place}cannot be written: {e.strerror}") from e
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as e:  # a plugin, or a file of the user, may raise anything
            raise _name_plugin(e) from e

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run a command and exit.

        Exit codes: 0 done, 1 a failed cell or check, or output that could not be printed, 2 an
        error that the user can correct, 3 an unreliable evaluation, 130 interrupted. A reader that
        has enough, as `head`, changes none of them.
        """
        extra["standalone_mode"] = False
        with lossy_streams() as out:
            code = self._run(*args, **extra)
            sys.stdout.flush()
            if out is not None and out.error is not None and out.error.errno != errno.EPIPE:
                click.echo(f"defend: {_describe_loss(out.error)}", err=True)
                code = code or LOST_OUTPUT
        sys.exit(code)

    def _run(self, *args: Any, **extra: Any) -> int:
        """Run a command and return its exit code."""
        try:
            with _sigterm_interrupts():
                return super().main(*args, **extra) or 0
        except click.Abort:
            return _say_error("interrupted", INTERRUPTED)
        except click.ClickException as e:
            return _say_error(_error_line(e), e.exit_code)


def _name_plugin(error: Exception) -> UserError:
    """Return the error of a plugin's code, with file and line. Raise any other error again."""
    place = locate_plugin(error)
    if place is None:
        raise error
    return UserError(
        f"{place}: {type(error).__name__}: {one_line(error)}; mend it (--debug before the command"
        " shows the traceback)"
    )


@contextmanager
def _debugging() -> Iterator[None]:
    """Let this process and those that it starts print tracebacks while the block runs."""
    before = os.environ.get(DEBUG)
    os.environ[DEBUG] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[DEBUG]
        else:
            os.environ[DEBUG] = before


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Treat SIGTERM, by which a batch system stops a job, as Control-C while the block runs."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python allows only the main thread to install a handler
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@click.pass_context
def _print_help(ctx: click.Context, /, **_: Any) -> None:
    """Print the help of the group if it is called without a command."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _error_line(e: click.ClickException) -> str:
    text = one_line(e.format_message())
    if isinstance(e, click.UsageError) and e.ctx:
        return f"{text} `{e.ctx.command_path} --help` shows the arguments and options."
    return text


def _say_error(text: str, code: int) -> int:
    click.echo(f"defend: {printable(text)}", err=True)
    return code


def _describe_loss(error: OSError) -> str:
    return (
        f"stdout: {error.strerror}; not all was printed, and what was to be written into files is"
        " written"
    )
