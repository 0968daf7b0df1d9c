"""`modalign attention`: where the class token looks, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modalign.cli.options import DATA, JUDGING, DeviceOption

EXAMPLE = "Example: modalign attention hf:./my-clip runs/kuea --pictures data/photos --out attention.png"


def attention(
    before: Annotated[str, typer.Argument(help="Model spec.")],
    after: Annotated[str | None, typer.Argument(help="Model spec of the model after, if any.")] = None,
    pictures: Annotated[str, typer.Option("--pictures", help="Any data spec.", rich_help_panel=DATA)] = "demo",
    out: Annotated[Path, typer.Option("--out", help="The PNG to write.")] = Path("attention.png"),
    count: Annotated[int, typer.Option("--count", min=1, max=40, help="How many, evenly spread over the data.")] = 6,
    layer: Annotated[
        int, typer.Option("--layer", help="A block, -2 the penultimate (LLaVA's).", rich_help_panel=JUDGING)
    ] = -2,
    device: DeviceOption = "auto",
) -> None:
    """Draw the class token's attention over pictures, of one model or before and after."""
    from modalign.data.images import decode
    from modalign.data.sources import images
    from modalign.models import load
    from modalign.report.attention import write_attention
    from modalign.training.precision import device as resolve

    models = [load(spec).to(resolve(device)) for spec in (before, after) if spec is not None]
    rows = images(pictures).rows
    shown = [decode(rows[i * len(rows) // min(count, len(rows))].path) for i in range(min(count, len(rows)))]
    file = write_attention(models[0], models[1] if len(models) > 1 else None, shown, out, layer)
    typer.echo(f"written: {file}")
