"""`modalign gap`, `modalign evaluate` and `modalign compare`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from modalign.cli import printing
from modalign.cli.options import (
    DATA,
    JUDGING,
    TASK,
    BatchOption,
    DeviceOption,
    ImageColumnOption,
    JsonOption,
    LabelColumnOption,
    MaxBadOption,
    SeedOption,
    StoreOption,
    TemplatesOption,
    TextColumnOption,
    WorkersOption,
)

if TYPE_CHECKING:
    from modalign.evaluation.certificate import Certified
    from modalign.evaluation.results import Results
    from modalign.gap.gaussian_pair import Shrinkage

GAP_EXAMPLE = "Example: modalign gap --embeddings image.npy text.npy --json gap.json"
EVALUATE_EXAMPLE = (
    "Example: modalign evaluate --model hf:./my-clip --task retrieval:flickr30k:data/f30k@test\n\n"
    "Example: modalign evaluate --model runs/kuea --task drift:data/pets --task knn:data/pets"
)
COMPARE_EXAMPLE = "Example: modalign compare hf:./my-clip runs/coco --task retrieval:flickr30k:data/f30k@test"


def gap(
    model: Annotated[str | None, typer.Option("--model", help="Model spec.", rich_help_panel=DATA)] = None,
    data: Annotated[str | None, typer.Option("--data", help="Pairs spec.", rich_help_panel=DATA)] = None,
    embeddings: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            "--embeddings",
            help="Two N×d .npy files, row i of both being pair i; needs no model.",
            metavar="IMAGE.npy TEXT.npy",
            rich_help_panel=DATA,
        ),
    ] = None,
    max_bad: MaxBadOption = 0,
    image_column: ImageColumnOption = None,
    text_column: TextColumnOption = None,
    json_file: JsonOption = None,
    normalize: Annotated[
        bool, typer.Option("--normalize/--no-normalize", help="Normalise rows to length 1 first.")
    ] = True,
    shrinkage: Annotated[
        str | None,
        typer.Option(
            "--shrinkage",
            help="Shrinks covariances for shape gap, Fréchet distance and KL: a share in (0, 1] or ledoit-wolf.",
            show_default="none",
        ),
    ] = None,
    device: DeviceOption = "auto",
    batch_size: BatchOption = 256,
    workers: WorkersOption = 0,
    store: StoreOption = None,
    seed: SeedOption = 0,
) -> None:
    """Measure the gap between the modalities, of a model on pairs or of stored embeddings."""
    from modalign.diagnosing import measure_files, measure_model

    if embeddings is not None and (model is not None or data is not None or store is not None):
        raise typer.BadParameter("give either --embeddings or --model and --data (and --store)")
    if embeddings is not None:
        report, told = measure_files(*embeddings, normalize=normalize, seed=seed, shrinkage=_shrinkage(shrinkage))
    elif model is not None and data is not None:
        report, told = measure_model(
            model,
            data,
            normalize=normalize,
            seed=seed,
            device=device,
            batch_size=batch_size,
            workers=workers,
            max_bad=max_bad,
            image_column=image_column,
            text_column=text_column,
            store=store,
            shrinkage=_shrinkage(shrinkage),
        )
    else:
        raise typer.BadParameter("give --model and --data, or --embeddings IMAGE.npy TEXT.npy")
    printing.json_file(json_file, {**told, "gap": report.to_dict()})
    typer.echo(report.table())


def evaluate(
    model: Annotated[str, typer.Option("--model", help="Model spec, for example hf:./my-clip or a run folder.")],
    task: Annotated[list[str], TASK],
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            help="The model before, for drift tasks; for a run folder the model it began with unless given.",
            show_default=False,
            rich_help_panel=JUDGING,
        ),
    ] = None,
    templates: TemplatesOption = "single",
    max_bad: MaxBadOption = 0,
    image_column: ImageColumnOption = None,
    text_column: TextColumnOption = None,
    label_column: LabelColumnOption = None,
    json_file: JsonOption = None,
    device: DeviceOption = "auto",
    batch_size: BatchOption = 256,
    workers: WorkersOption = 0,
    store: StoreOption = None,
    seed: SeedOption = 0,
) -> None:
    """Evaluate a model: zero-shot, retrieval and k-NN with 95 % intervals, and drift from a model before."""
    results = _evaluate(
        model,
        task,
        templates,
        device,
        batch_size,
        workers,
        seed,
        max_bad,
        store,
        against,
        {"image_column": image_column, "text_column": text_column, "label_column": label_column},
    )
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        results.save(json_file)
        typer.echo(f"written: {json_file}", err=True)
    if results.tasks:
        printing.rows(results.to_table())
    for found in results.drift:
        if results.tasks or found is not results.drift[0]:
            typer.echo()
        _print_certificate(found)


def compare(
    before: Annotated[str, typer.Argument(help="Model spec, or a JSON file of `modalign evaluate`.")],
    after: Annotated[str, typer.Argument(help="Model spec, or a JSON file of `modalign evaluate`.")],
    task: Annotated[list[str] | None, TASK] = None,
    templates: TemplatesOption = "single",
    tolerance: Annotated[
        float,
        typer.Option("--tolerance", min=0, help="The drop that is tolerated; 0.01 = a point.", rich_help_panel=JUDGING),
    ] = 0.01,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail on 'cannot tell' too.", rich_help_panel=JUDGING)
    ] = False,
    max_bad: MaxBadOption = 0,
    json_file: JsonOption = None,
    device: DeviceOption = "auto",
    batch_size: BatchOption = 256,
    workers: WorkersOption = 0,
    store: StoreOption = None,
    seed: SeedOption = 0,
) -> None:
    """Compare two models on the same examples by paired bootstrap; exit status 3 when the second is worse."""
    from modalign.evaluation.gate import judge
    from modalign.evaluation.tasks import Results

    specs, certain = (before, after), None
    models = [spec for spec in specs if not spec.endswith(".json")]
    if models and not task:
        raise typer.BadParameter("name at least one --task, or compare two JSON files of `modalign evaluate`")
    if len(models) == 2:
        *pair, certain = _evaluate_both(
            models, task or [], templates, device, batch_size, workers, seed, max_bad, store
        )
    else:
        pair = [
            _evaluate(spec, task or [], templates, device, batch_size, workers, seed, max_bad, store)
            if spec in models
            else Results.load(Path(spec))
            for spec in specs
        ]
    gate = judge(pair[0], pair[1], tolerance, seed=seed)
    collapsed = _collapse(pair[0], pair[1])
    told = {
        "collapse": collapsed,
        "certificate": certain and certain.to_dict(),
        "drift": [found.to_dict() for found in pair[1].drift],
    }
    printing.json_file(json_file, {**gate.to_dict(), **told})
    printing.rows(gate.to_table())
    for found in pair[1].drift:
        typer.echo()
        _print_certificate(found)
    if certain is not None:
        typer.echo(f"certificate: {certain.sentence}")
    if collapsed is not None:
        typer.echo(f"warning: {collapsed}")
    typer.echo(f"verdict: {gate.sentence}")
    raise typer.Exit(gate.exit_code(strict))


def _print_certificate(found: Certified) -> None:
    typer.echo(found.summary)
    printing.rows(found.bound_rows())
    if found.labels:
        printing.rows(found.label_rows())


def _collapse(before: Results, after: Results) -> str | None:
    """The collapse warning, where both evaluations measured the gap on the same pairs."""
    from modalign.gap import GapReport, collapse

    if before.gap is None or after.gap is None or before.gap["pairs"] != after.gap["pairs"]:
        return None
    return collapse(GapReport.from_dict(before.gap).changes_to(GapReport.from_dict(after.gap)))


def _shrinkage(told: str | None) -> Shrinkage:
    """A share, or a name: `measure` refuses what is neither."""
    try:
        return None if told is None else float(told)
    except ValueError:
        return cast("Shrinkage", told)


def _evaluate(
    model: str,
    tasks: list[str],
    templates: str,
    device: str,
    batch_size: int,
    workers: int,
    seed: int,
    max_bad: int,
    store: Path | None,
    against: str | None = None,
    columns: Mapping[str, Any] | None = None,
) -> Results:
    from modalign.console import Reporter
    from modalign.evaluation.tasks import evaluate as run
    from modalign.evaluation.tasks import parse_task
    from modalign.models import load
    from modalign.run_folder import began_with
    from modalign.training.precision import device as resolve
    from modalign.training.precision import tf32

    loaded, base = load(model).to(resolve(device)), None
    if against is not None:
        base = load(against).to(resolve(device))
    elif (Path(model) / "recipe.yaml").is_file() and any(parse_task(task).kind == "drift" for task in tasks):
        base = began_with(Path(model)).to(resolve(device))
    with tf32(False), Reporter().counted(f"evaluating {model}", "pictures") as update:
        return run(
            loaded,
            tasks,
            against=base,
            templates=templates,
            batch_size=batch_size,
            workers=workers,
            max_bad=max_bad,
            store=store,
            seed=seed,
            progress=update,
            **(columns or {}),
        )


def _evaluate_both(
    models: list[str],
    tasks: list[str],
    templates: str,
    device: str,
    batch_size: int,
    workers: int,
    seed: int,
    max_bad: int,
    store: Path | None,
) -> tuple[Results, Results, Certified | None]:
    from modalign.console import Reporter
    from modalign.evaluation.tasks import evaluate_both
    from modalign.models import load
    from modalign.training.precision import device as resolve
    from modalign.training.precision import tf32

    before, after = (load(model).to(resolve(device)) for model in models)
    with tf32(False), Reporter().counted(f"evaluating {' and '.join(models)}", "pictures") as update:
        return evaluate_both(
            before,
            after,
            tasks,
            templates=templates,
            batch_size=batch_size,
            workers=workers,
            max_bad=max_bad,
            store=store,
            seed=seed,
            progress=update,
        )
