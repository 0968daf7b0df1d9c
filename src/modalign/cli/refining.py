"""`modalign demo` and `modalign refine`."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from modalign.cli import printing
from modalign.cli.options import (
    METHODS_HELP,
    ImageColumnOption,
    ProtocolTemplatesOption,
    SeedOption,
    SetOption,
    TextColumnOption,
)
from modalign.cli.recipe_options import (
    BadRowsOption,
    ChunkOption,
    DataOption,
    EpochsOption,
    EvalOption,
    FractionOption,
    GlobalBatchOption,
    LimitOption,
    MethodOption,
    ModelOption,
    OutOption,
    RateOption,
    RecipeDeviceOption,
    RecipeOption,
    RecipePrecisionOption,
    RecipeProtocolOption,
    RecipeSeedOption,
    RecipeWorkersOption,
    ResumeOption,
    SharedStoreOption,
    StratifyOption,
    StrictOption,
    TargetOption,
    TrackOption,
    TrainOption,
)
from modalign.cli.stopping import stoppable
from modalign.errors import OutputError

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

    with stoppable("go on with the same command"):
        status = run(out, method=method, seed=seed, train=train.value)
    raise typer.Exit(status)


def refine(
    out: OutOption,
    model: ModelOption = None,
    data: DataOption = None,
    method: MethodOption = None,
    target: TargetOption = None,
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    resume: ResumeOption = False,
    store: SharedStoreOption = None,
    track: TrackOption = None,
    fraction: FractionOption = None,
    limit: LimitOption = None,
    stratify: StratifyOption = None,
    image_column: ImageColumnOption = None,
    text_column: TextColumnOption = None,
    max_bad: BadRowsOption = None,
    train: TrainOption = None,
    epochs: EpochsOption = None,
    batch_size: GlobalBatchOption = None,
    chunk: ChunkOption = None,
    lr: RateOption = None,
    seed: RecipeSeedOption = None,
    evaluations: EvalOption = None,
    protocol: RecipeProtocolOption = None,
    templates: ProtocolTemplatesOption = None,
    strict: StrictOption = None,
    workers: RecipeWorkersOption = None,
    device: RecipeDeviceOption = None,
    precision: RecipePrecisionOption = None,
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
        data__stratify=stratify,
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
        evaluation__protocol=protocol,
        evaluation__templates=templates,
        evaluation__strict=strict,
        trackers=track or None,
    )
    with stoppable(f"go on with --out {out} --resume", out):
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
