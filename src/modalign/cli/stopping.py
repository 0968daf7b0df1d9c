"""How a command ends that was stopped, or typed wrongly: in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from modalign.errors import InterruptedRunError
from modalign.training.interruption import signal_of, terminable

UsageError: Any = typer.BadParameter.__mro__[1]
"""The base of everything said about options and arguments: click's own, or that of the copy within typer."""


class OneLine(TyperGroup):
    """Commands whose interruptions and usage errors are one line on standard error."""

    def invoke(self, ctx: Any) -> Any:
        """Runs a command; Ctrl-C and SIGTERM that it has no words for become `InterruptedRunError`."""
        with terminable():
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt as error:
                raise InterruptedRunError("stopped", signal_of(error)) from None

    def main(self, *args: Any, **more: Any) -> Any:
        """Reads the arguments and runs the command."""
        alone = more.pop("standalone_mode", True)
        more["standalone_mode"] = False
        try:
            status = super().main(*args, **more)
        except UsageError as error:
            if not alone:
                raise
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()
            else:
                typer.echo(usage(error), err=True)
            raise SystemExit(2) from None
        if not alone:
            return status
        raise SystemExit(status if isinstance(status, int) else 0)


def usage(error: Any) -> str:
    """`modalign refine: no such option: --modle; see modalign refine --help`."""
    command = error.ctx.command_path if error.ctx is not None else "modalign"
    told = " ".join(str(error.format_message()).removeprefix("Invalid value: ").split()).rstrip(".")
    return f"{command}: {told[:1].lower()}{told[1:]}; see {command} --help"


@contextmanager
def stoppable(remedy: str, folder: Path | None = None) -> Iterator[None]:
    """Ctrl-C and SIGTERM where nothing else catches them end in one line that says how to go on.

    Args:
        remedy: what to say.
        folder: of a run: what it lacks before the run began.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        kept = folder is None or (folder / "recipe.yaml").is_file()
        raise InterruptedRunError(
            f"stopped; {remedy}" if kept else "stopped before the run began", signal_of(error)
        ) from None
