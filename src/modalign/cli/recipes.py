"""`modalign recipe show | check | schema | list`."""

from __future__ import annotations

from typing import Annotated

import typer

from modalign.cli.options import SetOption

app = typer.Typer(help="Look at recipes: what a run would do, and whether it can.", no_args_is_help=True)

SourceArgument = Annotated[str, typer.Argument(help="A recipe file, a run folder or the name of a shipped recipe.")]


@app.command(epilog="Example: modalign recipe show clip-refine-vit-b-32 --set optimizer.lr=3e-6")
def show(
    source: Annotated[
        str | None,
        typer.Argument(help="A recipe file, a run folder or the name of a shipped recipe; without one, the defaults."),
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Print every setting with where its value comes from; what is printed is a recipe itself."""
    from modalign.recipe.showing import show as resolved

    typer.echo(resolved(source, overrides or ()), nl=False)


@app.command(epilog="Example: modalign recipe check my-recipe.yaml")
def check(source: SourceArgument, overrides: SetOption = None) -> None:
    """Say what is wrong with a recipe, a line each, without running it; exit status 2 when something is."""
    from modalign.recipe.checking import check as problems

    found = problems(source, overrides or ())
    for problem in found:
        typer.echo(f"error: {problem}", err=True)
    if found:
        raise typer.Exit(2)
    typer.echo(f"ok: {source}")


@app.command(epilog="Example: modalign recipe schema > modalign-recipe.json")
def schema() -> None:
    """Print the JSON Schema of recipes, for editors: completion, descriptions and errors as you type."""
    import json

    from modalign.recipe.json_schema import schema as made

    typer.echo(json.dumps(made(), indent=1, ensure_ascii=False))


@app.command("list", epilog="Example: modalign recipe list")
def list_() -> None:
    """Name the recipes that come with modalign, and the command that runs each."""
    from modalign.recipe import shipped

    for name, path in shipped().items():
        command = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        typer.echo(f"{name:<28}  {command}")
