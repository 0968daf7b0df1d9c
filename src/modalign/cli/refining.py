"""`modalign demo` and `modalign refine`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from modalign.cli import printing
from modalign.cli.options import (
    DATA,
    JUDGING,
    MACHINE,
    MAX_BAD_HELP,
    METHODS_HELP,
    TASK_HELP,
    TEMPLATES_HELP,
    TRAINING,
    Precision,
    SeedOption,
    SetOption,
)
from modalign.errors import InterruptedRunError, OutputError

DEMO_EXAMPLE = "Example: modalign demo --out runs/demo --seed 1"
REFINE_EXAMPLE = (
    "Example: modalign refine --model hf:openai/clip-vit-base-patch32 --data coco:data/coco@train2017 "
    "--method clip-refine --out runs/coco --eval retrieval:coco:data/coco@val2017"
)


class DemoScope(StrEnum):
    """What trains in the demo."""

    PROJECTION = "projection"
    FULL = "full"


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder of the demo's runs.")] = Path("runs/demo"),
    method: Annotated[str, typer.Option("--method", help=METHODS_HELP)] = "clip-refine",
    seed: SeedOption = 0,
    train: Annotated[DemoScope, typer.Option("--train", help="What trains; full tells its time first.")] = (
        DemoScope.PROJECTION
    ),
) -> None:
    """Run the whole loop on real pictures and weights that packages ship: a small CLIP of illustrations."""
    from modalign.demo.run import run

    with _stoppable("go on with the same command"):
        status = run(out, method=method, seed=seed, train=train.value)
    raise typer.Exit(status)


def refine(
    out: Annotated[Path, typer.Option("--out", help="The run folder; new or empty unless --resume.")],
    model: Annotated[str | None, typer.Option("--model", help="Model spec, for example hf:./my-clip.")] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Pairs spec of the training data; images:SPEC for pictures alone.")
    ] = None,
    method: Annotated[str | None, typer.Option("--method", help=METHODS_HELP, show_default="clip-refine")] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", help="Vision model that kuea takes over, for example hf:facebook/dinov2-base."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="A recipe file, a run folder or the name of a shipped recipe."),
    ] = None,
    overrides: SetOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, exactly.")] = False,
    store: Annotated[
        str | None,
        typer.Option(
            "--store", help="Folder of stored features that several runs share.", show_default="the run's own cache"
        ),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option("--track", help="Log to tensorboard, wandb or trackio as well; repeat for several."),
    ] = None,
    fraction: Annotated[
        float | None,
        typer.Option("--fraction", help="Train on this share of the pairs.", show_default="1", rich_help_panel=DATA),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Train on at most so many pairs.", rich_help_panel=DATA)
    ] = None,
    image_column: Annotated[
        str | None,
        typer.Option("--image-column", help="The table's column of pictures, if unusual.", rich_help_panel=DATA),
    ] = None,
    text_column: Annotated[
        str | None,
        typer.Option("--text-column", help="The table's column of captions, if unusual.", rich_help_panel=DATA),
    ] = None,
    max_bad: Annotated[
        int | None,
        typer.Option("--max-bad", min=0, help=MAX_BAD_HELP, show_default="0", rich_help_panel=DATA),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            "--train",
            help="What trains: full, image, text, projection, last:N, lora, or a regex over parameter names.",
            show_default="full",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, help="Passes over the data.", show_default="1", rich_help_panel=TRAINING),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", min=2, help="Pairs in a global batch.", show_default="512", rich_help_panel=TRAINING
        ),
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option(
            "--chunk",
            min=1,
            help="Rows embedded at once; never changes the gradient.",
            show_default="the whole batch",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option("--lr", min=0, help="Base learning rate.", show_default="1e-06", rich_help_panel=TRAINING),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, help="Seed of everything random.", show_default="0", rich_help_panel=TRAINING),
    ] = None,
    evaluations: Annotated[list[str] | None, typer.Option("--eval", help=TASK_HELP, rich_help_panel=JUDGING)] = None,
    templates: Annotated[
        str | None,
        typer.Option("--templates", help=TEMPLATES_HELP, show_default="single", rich_help_panel=JUDGING),
    ] = None,
    strict: Annotated[
        bool | None,
        typer.Option("--strict", help="Fail on 'cannot tell' too.", show_default="no", rich_help_panel=JUDGING),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=0, help="Decoding processes.", show_default="0", rich_help_panel=MACHINE),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.", show_default="auto", rich_help_panel=MACHINE),
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option("--precision", help="The towers' number format.", show_default="fp32", rich_help_panel=MACHINE),
    ] = None,
) -> None:
    """Refine a model on a small data set; exit status 3 when a metric got worse.

    Options lie over the recipe; the defaults shown hold without one. --set changes any key of modalign recipe show.
    """
    from modalign import recipe as recipes
    from modalign.console import Reporter
    from modalign.running import run_recipe

    source: str | Path | None = recipe
    if resume:
        out = _go_back(out)
        source = source or out / "recipe.yaml"
    resolved = recipes.load(
        source,
        overrides or (),
        model=model,
        target=target,
        store=store,
        data__train=data,
        data__fraction=fraction,
        data__limit=limit,
        data__image_column=image_column,
        data__text_column=text_column,
        data__max_bad=max_bad,
        data__batch_size=batch_size,
        data__workers=workers,
        method__name=method,
        train=train,
        epochs=epochs,
        chunk=chunk,
        optimizer__lr=lr,
        seed=seed,
        device=device,
        precision=precision.value if precision is not None else None,
        evaluation__tasks=evaluations or None,
        evaluation__templates=templates,
        evaluation__strict=strict,
        trackers=track or None,
    )
    with _stoppable(f"go on with --out {out} --resume", out):
        run = run_recipe(resolved, out, resume=resume, reporter=Reporter())
    if os.environ.get("RANK", "0") != "0":
        return  # under torchrun, one process speaks
    if run.gate is not None:
        printing.rows(run.gate.to_table())
        typer.echo(f"verdict: {run.gate.sentence}")
    if run.certificate:
        typer.echo(f"certificate: {run.certificate}")
    if run.interpolation:
        typer.echo(f"between before and after: {run.interpolation}")
    typer.echo(f"report: {run.report}")
    raise typer.Exit(run.exit_code)


def _go_back(out: Path) -> Path:
    """On a resume, works from the folder the run began in, since relative specs of model and data begin there.

    Returns:
        The run folder, absolute where that is another folder than the present one.
    """
    import json

    if not (out / "recipe.yaml").is_file():
        raise OutputError(f"there is no run in {out} to resume; name the --out it began with, or leave --resume out")
    try:
        began = json.loads((out / "environment.json").read_text(encoding="utf-8")).get("folder")
    except (OSError, ValueError):
        began = None  # the run was stopped before it was claimed whole, or is older than this record
    if began is None or Path(began) == Path.cwd():
        return out
    if not Path(began).is_dir():
        typer.echo(
            f"warning: {out} began in {began}, which is gone; relative paths now begin in {Path.cwd()}", err=True
        )
        return out
    out = out.absolute()
    os.chdir(began)
    typer.echo(f"working from {began}, where {out} began", err=True)
    return out


@contextmanager
def _stoppable(remedy: str, folder: Path | None = None) -> Iterator[None]:
    """Ctrl-C where nothing catches it (frozen passes, evaluation) ends in one line that says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        kept = folder is None or (folder / "recipe.yaml").is_file()
        raise InterruptedRunError(f"stopped; {remedy}" if kept else "stopped before the run began") from None
