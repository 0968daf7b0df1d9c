"""`modalign gap`, `modalign evaluate` and `modalign compare`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from modalign.cli import printing
from modalign.cli.llava import LlavaOption, with_llava
from modalign.cli.options import (
    DATA,
    JUDGING,
    TASK,
    BatchOption,
    DataRootOption,
    DeviceOption,
    ImageColumnOption,
    JsonOption,
    JudgedModelOption,
    LabelColumnOption,
    MaxBadOption,
    ProtocolOption,
    ProtocolTemplatesOption,
    SeedOption,
    StoreOption,
    SuiteOption,
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
    "Example: modalign evaluate --model runs/kuea --task drift:data/pets --task knn:data/pets\n\n"
    "Example: modalign evaluate --model runs/kuea --suite core --data-root data --store features\n\n"
    "Example: modalign evaluate --model runs/kuea --llava llava-1.5-7b-hf --task vqa:data/questions.jsonl"
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
    typer.echo(report.table())
    printing.json_file(json_file, {**told, "gap": report.to_dict()})


def evaluate(
    model: JudgedModelOption,
    task: Annotated[list[str] | None, TASK] = None,
    suite: SuiteOption = None,
    data_root: DataRootOption = None,
    protocol: ProtocolOption = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            help="The model before, for drift tasks; for a run folder the model it began with unless given.",
            show_default=False,
            rich_help_panel=JUDGING,
        ),
    ] = None,
    llava: LlavaOption = None,
    templates: ProtocolTemplatesOption = None,
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
    """Evaluate a model on any kinds of task, each metric with a 95 % interval."""
    asked = _asked(task, suite, data_root, protocol, store)
    results = _evaluate(
        model,
        with_llava(task or [], llava),
        device,
        optional=asked.optional,
        against=against,
        templates=templates,
        protocol=asked.protocol,
        max_bad=max_bad,
        image_column=image_column,
        text_column=text_column,
        label_column=label_column,
        batch_size=batch_size,
        workers=workers,
        store=asked.store,
        seed=seed,
    )
    if results.tasks:
        printing.rows(results.to_table())
        _print_protocols(results)
    for found in results.drift:
        if results.tasks or found is not results.drift[0]:
            typer.echo()
        _print_certificate(found)
    asked.tell_left_out(results)
    if json_file is not None:
        results.save(json_file)
        typer.echo(f"written: {json_file}", err=True)


def compare(
    before: Annotated[str, typer.Argument(help="Model spec, or a JSON file of `modalign evaluate`.")],
    after: Annotated[str, typer.Argument(help="Model spec, or a JSON file of `modalign evaluate`.")],
    task: Annotated[list[str] | None, TASK] = None,
    suite: SuiteOption = None,
    data_root: DataRootOption = None,
    protocol: ProtocolOption = None,
    llava: LlavaOption = None,
    templates: ProtocolTemplatesOption = None,
    tolerance: Annotated[
        float,
        typer.Option("--tolerance", min=0, help="The drop that is tolerated; 0.01 = a point.", rich_help_panel=JUDGING),
    ] = 0.01,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail on 'cannot tell' too.", rich_help_panel=JUDGING)
    ] = False,
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
    """Compare two models on the same examples by paired bootstrap; exit status 3 when the second is worse."""
    from modalign.evaluation.gate import judge
    from modalign.evaluation.tasks import Results

    specs, certain = (before, after), None
    models = [spec for spec in specs if not spec.endswith(".json")]
    columns = {"image_column": image_column, "text_column": text_column, "label_column": label_column}
    if not models and (task or suite or data_root or protocol or templates or any(columns.values())):
        raise typer.BadParameter(
            "two JSON files are compared as they are; leave --task, --suite, --data-root, --protocol, --templates and "
            "column options out"
        )
    if models and not (task or suite):
        raise typer.BadParameter("name at least one --task, or compare two JSON files of `modalign evaluate`")
    asked = _asked(task, suite, data_root, protocol, store) if models else Asked()
    task = with_llava(task or [], llava)
    settings: dict[str, Any] = {
        "optional": asked.optional,
        "templates": templates,
        "protocol": asked.protocol,
        "max_bad": max_bad,
        "store": asked.store,
        "seed": seed,
        **columns,
    }
    settings |= {"batch_size": batch_size, "workers": workers}
    if len(models) == 2:
        *pair, certain = _evaluate_both(models, task, device, **settings)
    else:
        pair = [
            _evaluate(spec, task, device, **settings) if spec in models else Results.load(Path(spec)) for spec in specs
        ]
    gate = judge(pair[0], pair[1], tolerance, seed=seed)
    collapsed = _collapse(pair[0], pair[1])
    told = {
        "collapse": collapsed,
        "certificate": certain and certain.to_dict(),
        "drift": [found.to_dict() for found in pair[1].drift],
    }
    printing.rows(gate.to_table())
    _print_protocols(*pair)
    for found in pair[1].drift:
        typer.echo()
        _print_certificate(found)
    if certain is not None:
        typer.echo(f"certificate: {certain.sentence}")
    if collapsed is not None:
        typer.echo(f"warning: {collapsed}")
    typer.echo(f"verdict: {gate.sentence}")
    asked.tell_left_out(*pair)
    printing.json_file(json_file, {**gate.to_dict(), **told})
    raise typer.Exit(gate.exit_code(strict))


@dataclass(frozen=True)
class Asked:
    """What a suite adds to the tasks that were named.

    Attributes:
        optional: its tasks whose data is there; one that cannot be judged is left out.
        protocol: the tasks are judged by.
        store: where features and results are kept.
        missing: how many of its tasks have no data.
    """

    optional: list[str] = field(default_factory=list)
    protocol: str = "default"
    store: Path | None = None
    missing: int = 0

    def tell_left_out(self, *found: Results) -> None:
        """How many of the suite's tasks were not judged, where any."""
        if lost := self.missing + max(len(results.left_out) for results in found):
            typer.echo(f"{lost} of {self.missing + len(self.optional)} tasks of the suite left out", err=True)


def _asked(
    task: list[str] | None, suite: str | None, data_root: Path | None, protocol: str | None, store: Path | None
) -> Asked:
    """What is judged beside the tasks that were named, and how; tells what is missing."""
    if suite is None:
        if not task:
            raise typer.BadParameter("name at least one --task, or a --suite")
        if data_root is not None:
            raise typer.BadParameter(
                "--data-root is where a --suite finds its data sets; name a suite, or leave it out"
            )
        return Asked([], protocol or "default", store)
    from modalign.demo.cache import cache_dir
    from modalign.evaluation.suites import SUITES, suite_tasks

    found, missing = suite_tasks(suite, data_root)
    for lack in missing:
        typer.echo(str(lack), err=True)
    if store is None:
        store = cache_dir() / "evaluation"
        typer.echo(f"features and results are kept in {store}; --store keeps them elsewhere", err=True)
    return Asked(found, protocol or SUITES[suite].protocol, store, len(missing))


def _print_protocols(*found: Results) -> None:
    """How each task was judged, and of two results how their metrics vary over seeds or draws."""
    typer.echo()
    for result in found[0].tasks:
        typer.echo(result.summary)
    if len(found) == 1:  # whose table tells it
        return
    for name, *same in zip(found[0].names, *(results.tasks for results in found), strict=True):
        for metric in same[0].metrics:
            if all(told := [result.spread(metric) for result in same]):
                typer.echo(f"{name}.{metric}: before {told[0]}, after {told[1]}")


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


def _evaluate(model: str, tasks: list[str], device: str, *, against: str | None = None, **settings: Any) -> Results:
    """`modalign.evaluate` of a spec; the settings are its own."""
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
        return run(loaded, tasks, against=base, progress=update, **settings)


def _evaluate_both(
    models: list[str], tasks: list[str], device: str, **settings: Any
) -> tuple[Results, Results, Certified | None]:
    from modalign.console import Reporter
    from modalign.evaluation.tasks import evaluate_both
    from modalign.models import load
    from modalign.training.precision import device as resolve
    from modalign.training.precision import tf32

    before, after = (load(model).to(resolve(device)) for model in models)
    with tf32(False), Reporter().counted(f"evaluating {' and '.join(models)}", "pictures") as update:
        return evaluate_both(before, after, tasks, progress=update, **settings)
