"""The command line. Every command imports what it needs when it runs, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from modalign.errors import ModalignError, OutputError
from modalign.version import __version__

app = typer.Typer(
    name="modalign",
    help="Diagnose, refine, verify and ship CLIP-like vision-language models.",
    epilog="Start with: modalign demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

WORSE = 3
"""Exit status of a run whose gate calls a metric worse."""


class Scope(StrEnum):
    """What trains."""

    FULL = "full"
    IMAGE = "image"
    TEXT = "text"
    PROJECTION = "projection"


class DemoScope(StrEnum):
    """What trains in the demo."""

    PROJECTION = "projection"
    FULL = "full"


class Precision(StrEnum):
    """The towers' number format."""

    FP32 = "fp32"
    BF16 = "bf16"
    TF32 = "tf32"


class Format(StrEnum):
    """What a checkpoint can be exported to."""

    OPEN_CLIP = "open_clip"
    TRANSFORMERS = "transformers"


METHODS_HELP = "The method: clip-refine, or a baseline (contrastive, hycd, rafa, …; all: modalign doctor)."
ModelOption = Annotated[str, typer.Option("--model", help="Model spec, for example hf:./my-clip or a run folder.")]
TaskOption = Annotated[
    list[str], typer.Option("--task", help="zero-shot:SPEC or retrieval:SPEC; repeat for several.", show_default=False)
]
TemplatesOption = Annotated[str, typer.Option("--templates", help="single, openai80 or a file of prompt templates.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Also write the numbers here.", show_default=False)]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Pictures or captions in one forward pass.")]
WorkersOption = Annotated[int, typer.Option("--workers", min=0, help="Decoding processes beside the main one.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]


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


@app.command(epilog="Example: modalign demo --out runs/demo --seed 1")
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

    raise typer.Exit(run(out, method=method, seed=seed, train=train.value))


@app.command(
    epilog="Example: modalign refine --model hf:openai/clip-vit-base-patch32 --data coco:data/coco@train2017 "
    "--method clip-refine --out runs/coco --eval retrieval:coco:data/coco@val2017"
)
def refine(
    out: Annotated[Path, typer.Option("--out", help="The run folder; new or empty unless --resume.")],
    model: Annotated[str | None, typer.Option("--model", help="Model spec, for example hf:./my-clip.")] = None,
    data: Annotated[str | None, typer.Option("--data", help="Pairs spec of the training data.")] = None,
    method: Annotated[str | None, typer.Option("--method", help=METHODS_HELP)] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="A recipe file or the name of a shipped one.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Any recipe key, as a.b=c; repeat for several.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, exactly.")] = False,
    train: Annotated[Scope | None, typer.Option("--train", help="Which parameters train.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Passes over the data.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=2, help="Pairs in a global batch.")] = None,
    chunk: Annotated[
        int | None, typer.Option("--chunk", min=1, help="Rows embedded at once; never changes the gradient.")
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", min=0, help="Base learning rate.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of everything random.")] = None,
    max_bad: Annotated[
        int | None, typer.Option("--max-bad", min=0, help="Unreadable rows tolerated before the run stops.")
    ] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=0, help="Decoding processes.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")] = None,
    precision: Annotated[Precision | None, typer.Option("--precision", help="The towers' number format.")] = None,
    evaluations: Annotated[
        list[str] | None, typer.Option("--eval", help="zero-shot:SPEC or retrieval:SPEC; repeat for several.")
    ] = None,
    templates: Annotated[
        str | None, typer.Option("--templates", help="single, openai80 or a file of prompt templates.")
    ] = None,
    strict: Annotated[bool | None, typer.Option("--strict", help="Fail on 'cannot tell' too.")] = None,
) -> None:
    """Refine a model on image-text pairs; exit status 3 when a metric got worse."""
    from modalign import recipe as recipes
    from modalign.console import Reporter
    from modalign.running import run_recipe

    if resume and not (out / "recipe.yaml").is_file():
        raise OutputError(f"there is no run in {out} to resume; name the --out it began with, or leave --resume out")
    source: str | Path | None = recipe
    if resume and recipe is None and (out / "recipe.yaml").is_file():
        source = out / "recipe.yaml"
    resolved = recipes.load(
        source,
        overrides or (),
        model=model,
        data__train=data,
        method__name=method,
        train=train.value if train is not None else None,
        epochs=epochs,
        data__batch_size=batch_size,
        chunk=chunk,
        optimizer__lr=lr,
        seed=seed,
        data__max_bad=max_bad,
        data__workers=workers,
        device=device,
        precision=precision.value if precision is not None else None,
        evaluation__tasks=evaluations or None,
        evaluation__templates=templates,
        evaluation__strict=strict,
    )
    run = run_recipe(resolved, out, resume=resume, reporter=Reporter())
    if os.environ.get("RANK", "0") != "0":
        return  # under torchrun, one process speaks
    if run.gate is not None:
        _print_rows(run.gate.to_table())
        typer.echo(f"verdict: {run.gate.sentence}")
    if run.interpolation:
        typer.echo(f"between before and after: {run.interpolation}")
    typer.echo(f"report: {run.report}")
    raise typer.Exit(run.exit_code)


@app.command(epilog="Example: modalign gap --embeddings image.npy text.npy --json gap.json")
def gap(
    model: Annotated[str | None, typer.Option("--model", help="Model spec.")] = None,
    data: Annotated[str | None, typer.Option("--data", help="Pairs spec.")] = None,
    embeddings: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--embeddings", help="Two N×d .npy files, row i of both being pair i; needs no model."),
    ] = None,
    json_file: JsonOption = None,
    normalize: Annotated[
        bool, typer.Option("--normalize/--no-normalize", help="Normalise rows to length 1 first.")
    ] = True,
    device: DeviceOption = "auto",
    batch_size: BatchOption = 256,
    workers: WorkersOption = 0,
    max_bad: Annotated[int, typer.Option("--max-bad", min=0, help="Unreadable rows tolerated.")] = 0,
    seed: SeedOption = 0,
) -> None:
    """Measure the gap between the modalities, of a model on pairs or of stored embeddings."""
    from modalign.diagnosing import measure_files, measure_model

    if embeddings is not None and (model is not None or data is not None):
        raise typer.BadParameter("give either --embeddings or --model and --data")
    if embeddings is not None:
        report, told = measure_files(*embeddings, normalize=normalize, seed=seed)
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
        )
    else:
        raise typer.BadParameter("give --model and --data, or --embeddings IMAGE.npy TEXT.npy")
    _write_json(json_file, {**told, "gap": report.to_dict()})
    typer.echo(report.table())


@app.command(
    epilog="Example: modalign evaluate --model hf:./my-clip --task zero-shot:data/pets "
    "--task retrieval:flickr30k:data/f30k@test"
)
def evaluate(
    model: ModelOption,
    task: TaskOption,
    templates: TemplatesOption = "single",
    json_file: JsonOption = None,
    device: DeviceOption = "auto",
    batch_size: BatchOption = 256,
    workers: WorkersOption = 0,
    seed: SeedOption = 0,
) -> None:
    """Evaluate a model: zero-shot classification and retrieval, each number with a 95 % interval."""
    results = _evaluate(model, task, templates, device, batch_size, workers, seed)
    if json_file is not None:
        results.save(json_file)
        typer.echo(f"written: {json_file}", err=True)
    _print_rows(results.to_table())


@app.command(epilog="Example: modalign compare hf:./my-clip runs/coco --task retrieval:flickr30k:data/f30k@test")
def compare(
    before: Annotated[str, typer.Argument(help="Model spec, or a JSON file of `modalign evaluate`.")],
    after: Annotated[str, typer.Argument(help="Model spec, or a JSON file of `modalign evaluate`.")],
    task: Annotated[
        list[str] | None, typer.Option("--task", help="zero-shot:SPEC or retrieval:SPEC; repeat for several.")
    ] = None,
    templates: TemplatesOption = "single",
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0, help="The drop that is tolerated; 0.01 = a point.")
    ] = 0.01,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on 'cannot tell' too.")] = False,
    json_file: JsonOption = None,
    device: DeviceOption = "auto",
    batch_size: BatchOption = 256,
    workers: WorkersOption = 0,
    seed: SeedOption = 0,
) -> None:
    """Compare two models on the same examples by paired bootstrap; exit status 3 when the second is worse."""
    from modalign.evaluation.gate import judge
    from modalign.evaluation.tasks import Results

    pair = []
    for spec in (before, after):
        if spec.endswith(".json"):
            pair.append(Results.load(Path(spec)))
        elif task:
            pair.append(_evaluate(spec, task, templates, device, batch_size, workers, seed))
        else:
            raise typer.BadParameter("name at least one --task, or compare two JSON files of `modalign evaluate`")
    gate = judge(pair[0], pair[1], tolerance, seed=seed)
    _write_json(json_file, gate.to_dict())
    _print_rows(gate.to_table())
    typer.echo(f"verdict: {gate.sentence}")
    raise typer.Exit(gate.exit_code(strict))


@app.command(epilog="Example: modalign export runs/coco --to transformers --out exported/clip")
def export(
    run: Annotated[str, typer.Argument(help="A run folder, or any model spec.")],
    to: Annotated[Format, typer.Option("--to", help="The library that will load it.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write; new or empty.")],
) -> None:
    """Write a checkpoint another library loads, and prove that it does before saying so."""
    from modalign.exporting import export as write

    folder = write(run, out, to.value)
    typer.echo(f"exported and verified: {folder}")


@app.command(epilog="Example: modalign report runs/coco")
def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write a run's report.html again from what the run folder holds."""
    from modalign.report import page

    if not (run / "recipe.yaml").is_file():
        raise OutputError(f"{run} is not a run folder (it holds no recipe.yaml); name the --out of `modalign refine`")
    typer.echo(f"report: {page.write(run)}")


@app.command(epilog="Example: modalign doctor")
def doctor() -> None:
    """Say what this machine and environment can do: versions, devices, extras, cache."""
    from modalign.doctor import lines

    for line in lines():
        typer.echo(line)


def _evaluate(
    model: str, tasks: list[str], templates: str, device: str, batch_size: int, workers: int, seed: int
) -> Any:
    from modalign.evaluation.tasks import evaluate as run
    from modalign.models import load
    from modalign.training.precision import device as resolve
    from modalign.training.precision import tf32

    loaded = load(model).to(resolve(device))
    with tf32(False):
        return run(loaded, tasks, templates=templates, batch_size=batch_size, workers=workers, seed=seed)


def _print_rows(rows: list[list[str]]) -> None:
    """A table of strings, its first row being the header."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for number, title in enumerate(rows[0]):
        table.add_column(title, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    Console(markup=False, width=None if sys.stdout.isatty() else 140).print(table)


def _write_json(path: Path | None, value: Any) -> None:
    if path is None:
        return
    import json

    from modalign.training.checkpoint import write_atomically

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(value, indent=1))
    typer.echo(f"written: {path}", err=True)


def main() -> None:
    """Runs the command line; a user's error is one line and status 2."""
    import logging

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("modalign").setLevel(logging.INFO)  # rows left out are told
    try:
        app()
    except ModalignError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(130 if type(error).__name__ == "InterruptedRunError" else 2)
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except OSError as error:  # a full disk, a folder without permission
        place = f"{error.filename}: " if error.filename else ""
        typer.echo(
            f"error: {place}{error.strerror or error}; check the path, its permissions and the free space", err=True
        )
        sys.exit(2)
