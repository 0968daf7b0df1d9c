"""The command line. Every command imports what it needs when it runs, so that `--help` answers at once.

A file holds a group of commands; a new command is a function in one of them and a line here.
"""

from __future__ import annotations

import re
import sys
from typing import Annotated

import typer

from modalign.cli import (
    contrasting,
    judging,
    llava,
    looking,
    probing,
    recipes,
    refining,
    shipping,
    storing,
    sweep,
    transform,
)
from modalign.cli.stopping import OneLine
from modalign.errors import InterruptedRunError, ModalignError
from modalign.version import __version__

app = typer.Typer(
    name="modalign",
    cls=OneLine,
    help="Diagnose, refine, verify and ship CLIP-like vision-language models.",
    epilog="Start with: modalign demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

REFINE, JUDGE, SHIP = "Refine", "Diagnose and verify", "Ship and look"

app.command(rich_help_panel=REFINE, epilog=refining.DEMO_EXAMPLE)(refining.demo)
app.command(rich_help_panel=REFINE, epilog=refining.REFINE_EXAMPLE)(refining.refine)
app.command(rich_help_panel=REFINE, epilog=sweep.EXAMPLE)(sweep.sweep)
app.add_typer(recipes.app, name="recipe", rich_help_panel=REFINE)
app.command(rich_help_panel=JUDGE, epilog=judging.GAP_EXAMPLE)(judging.gap)
app.command(rich_help_panel=JUDGE, epilog=judging.EVALUATE_EXAMPLE)(judging.evaluate)
app.command(rich_help_panel=JUDGE, epilog=judging.COMPARE_EXAMPLE)(judging.compare)
app.command(rich_help_panel=JUDGE, epilog=contrasting.EXAMPLE)(contrasting.contrast)
app.command(rich_help_panel=JUDGE, epilog=looking.EXAMPLE)(looking.attention)
app.command(rich_help_panel=JUDGE, epilog=llava.EXAMPLE)(llava.llava)
app.command("probe-batch", rich_help_panel=JUDGE, epilog=probing.EXAMPLE)(probing.probe_batch)
app.command(rich_help_panel=JUDGE, epilog=storing.EMBED_EXAMPLE)(storing.embed)
app.add_typer(storing.app, name="store", rich_help_panel=JUDGE)
app.add_typer(transform.app, name="transform", rich_help_panel=REFINE)
app.command(rich_help_panel=SHIP, epilog=shipping.EXPORT_EXAMPLE)(shipping.export)
app.command(rich_help_panel=SHIP, epilog=shipping.REPORT_EXAMPLE)(shipping.report)
app.command(rich_help_panel=SHIP, epilog=shipping.DOCTOR_EXAMPLE)(shipping.doctor)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Diagnose, refine, verify and ship CLIP-like vision-language models."""


def main() -> None:
    """Runs the command line; a user's error is one line and status 2."""
    import logging

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("modalign").setLevel(logging.INFO)  # rows left out are told
    try:
        app(prog_name="modalign")
    except InterruptedRunError as error:
        _leave(str(error), 128 + error.number)
    except ModalignError as error:
        _leave(f"error: {error}", 2)
    except KeyboardInterrupt:
        _leave("stopped", 130)
    except BrokenPipeError:
        sys.exit(141)
    except OSError as error:  # a full disk, a folder without permission
        place = f"{error.filename}: " if error.filename else ""
        _leave(f"error: {place}{error.strerror or error}; check the path, its permissions and the free space", 2)
    except Exception as error:  # safetensors and tokenizers tell of a full disk in an exception of their own
        reason = re.search(r"([^:]+) \(os error \d+\)", str(error))
        if reason is None:
            raise
        _leave(f"error: a file could not be written or read:{reason[1]}; check the free space and permissions", 2)


def _leave(told: str, status: int) -> None:
    typer.echo(told, err=True)
    sys.exit(status)
