"""`--llava DIR`, the language model that answers a task's questions, and `modalign llava`, a table of such rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from modalign.cli.options import JUDGING, DeviceOption, SetOption
from modalign.errors import RecipeError

EXAMPLE = "Example: modalign llava recipes/llava-2x2 --out runs/llava-2x2"

LlavaOption = Annotated[
    Path | None,
    typer.Option(
        "--llava",
        help="A transformers LLaVA's folder: tasks vqa and mmvp ask it, with the model's image tower inside it.",
        show_default=False,
        rich_help_panel=JUDGING,
    ),
]


def with_llava(tasks: Sequence[str], folder: Path | None) -> list[str]:
    """The tasks, each that can ask a language model told which; unchanged without a folder.

    Raises:
        RecipeError: a task that cannot be read, none that asks a language model, or one that names another.
    """
    if folder is None:
        return list(tasks)
    from modalign.evaluation.kinds import KINDS
    from modalign.evaluation.suite import parse_task

    told, takes = [], [kind for kind, known in KINDS.items() if "llava" in known.options]
    for text in tasks:
        task = parse_task(text)
        options = dict(task.options)
        if task.kind in takes:
            if options.setdefault("llava", str(folder)) != str(folder):
                raise RecipeError(f"task {text} names a LLaVA of its own; leave it, or --llava {folder}, out")
            task = replace(task, options=tuple(sorted(options.items())))
        told.append(str(task))
    if not any(parse_task(task).kind in takes for task in told):
        raise RecipeError(f"--llava {folder}: no task asks a language model; add {' or '.join(takes)}, or leave it out")
    return told


def llava(
    recipe: Annotated[Path, typer.Argument(help="A folder of LLaVA recipes (recipes/llava-2x2), or one of them.")],
    out: Annotated[
        Path, typer.Option("--out", help="The folder of the rows; begun rows go on, finished ones are read.")
    ],
    settings: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Tune and ask a LLaVA with this tower and that, and print the table: baseline, +align, +peft, +both."""
    from modalign.console import Reporter
    from modalign.evaluation.llava.recipe import load_recipes
    from modalign.evaluation.llava.table import run_rows, table
    from modalign.training.precision import device as resolve

    results = run_rows(load_recipes(recipe, settings or []), out, device=resolve(device), reporter=Reporter())
    told = table(results)
    (out / "table.md").write_text(told + "\n", encoding="utf-8")
    typer.echo(told)
