"""`modalign sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modalign.cli import printing
from modalign.cli.options import JUDGING, MACHINE, ProtocolTemplatesOption, SetOption
from modalign.cli.recipe_options import (
    DataOption,
    EvalOption,
    MethodOption,
    ModelOption,
    RecipeDeviceOption,
    RecipeOption,
    RecipeProtocolOption,
    TargetOption,
)

EXAMPLE = (
    "Example: modalign sweep --model hf:./my-clip --data ./pairs --method tpc-cma --eval retrieval:./test "
    "--over method.alpha_target=0,0.05,0.5 --seeds 3 --interpolate 0:1:0.1 --out runs/curve\n\n"
    'Example: … --eval zero-shot:./pets --pick "max retrieval.r1 where zero_shot.acc1 >= before - 0.5"'
)


def sweep(
    out: Annotated[Path, typer.Option("--out", help="The sweep's folder; new or empty unless --resume.")],
    over: Annotated[
        list[str] | None,
        typer.Option("--over", help="A recipe key and its values; several make a grid.", metavar="KEY=VALUE,VALUE"),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="How many (3), or which (0,1,5).", show_default="the recipe's")
    ] = None,
    interpolate: Annotated[
        str | None,
        typer.Option("--interpolate", help="Judge weights between before (0) and after (1): start:stop:step."),
    ] = None,
    pick: Annotated[
        str | None,
        typer.Option(
            "--pick",
            help="max|min QUANTITY where QUANTITY >=|<= NUMBER|before±NUMBER and …; shares in points of per cent.",
        ),
    ] = None,
    model: ModelOption = None,
    data: DataOption = None,
    method: MethodOption = None,
    target: TargetOption = None,
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    evaluations: EvalOption = None,
    protocol: RecipeProtocolOption = None,
    templates: ProtocolTemplatesOption = None,
    transforms: Annotated[
        bool,
        typer.Option(
            "--transforms/--no-transforms", help="Judge the training-free transforms too.", rich_help_panel=JUDGING
        ),
    ] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the sweep in --out.")] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            min=1,
            help="Runs at once.",
            show_default="what cores and free memory allow",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    device: RecipeDeviceOption = None,
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            help="Folder of stored features to share with other runs.",
            show_default="the sweep's own cache",
            rich_help_panel=MACHINE,
        ),
    ] = None,
) -> None:
    """Run a recipe at many settings and draw what a smaller gap costs; exit status 1 when a run failed.

    Every other setting goes through --set, as in modalign refine: --set epochs=5, --set optimizer.lr=1e-5.
    """
    from modalign.sweeping import sweep as run
    from modalign.sweeping.interpolating import parse_weights
    from modalign.sweeping.plan import parse_axes, parse_seeds

    done = run(
        parse_axes(over or ()),
        out=out,
        model=model,
        data=data,
        method=method,
        target=target,
        recipe=recipe,
        overrides=overrides or (),
        seeds=None if seeds is None else parse_seeds(seeds),
        interpolate=() if interpolate is None else parse_weights(interpolate),
        pick=pick,
        transforms=transforms,
        jobs=jobs,
        resume=resume,
        device=device,
        store=store,
        evaluation__tasks=evaluations or None,
        evaluation__protocol=protocol,
        evaluation__templates=templates,
    )
    for name, problem in done.failed.items():
        typer.echo(f"failed: {name}: {problem}", err=True)
    for trend in done.trends:
        typer.echo(f"trend: {trend.sentence}")
    if done.quality is not None:
        typer.echo(f"gap against quality: {done.quality.sentence}")
    for remark in done.remarks:
        typer.echo(f"not told: {remark}")
    if done.picked is not None:
        typer.echo(f"picked: {done.picked.sentence}")
        if done.picked.gate is not None:
            typer.echo(f"on the test half ({done.picked.halves[1]}), which chose nothing:")
            printing.rows(done.picked.gate.to_table())
            typer.echo(f"verdict: {done.picked.gate.sentence}")
            typer.echo(f"model: {done.model}")
    typer.echo(f"report: {done.report}")
    raise typer.Exit(done.exit_code)
