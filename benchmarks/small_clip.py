"""What the tables of methods share: the demo's small CLIP, on the demo's pictures or on a folder of the same layout."""

from __future__ import annotations

import argparse
import csv
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modalign.console import Reporter
from modalign.data import sources
from modalign.demo import model as demo_model
from modalign.evaluation.statistics import Difference, over_seeds
from modalign.features import TrunkMemo
from modalign.gap import transforms
from modalign.models import DualEncoder, load
from modalign.recipe import Recipe
from modalign.recipe import load as load_recipe

ABOUT = (
    "A small CLIP (frozen EfficientNet-Lite0 and MiniLM, MLP projections, pre-trained contrastively at a fixed\n"
    f"logit scale of {demo_model.LOGIT_SCALE:g}) refined on `refine`"
)
TRANSFORMS: dict[str, transforms.Transform] = {
    "mean-centring": transforms.Center(),
    "shift, λ = 1": transforms.Shift(amount=1.0),
    "standardise": transforms.Standardize(),
    "ReAlign": transforms.ReAlign(),
    "Gaussian OT": transforms.GaussianOT(),
    "Procrustes": transforms.Procrustes(),
    "ridge": transforms.Ridge(),
    "CCA": transforms.CCA(),
    "drop 8 dimensions": transforms.DropDimensions(k=8),
}
"""What is fitted on the pairs of `refine` and trains nothing."""


@dataclass(frozen=True)
class Setting:
    """Where the data lies and how long the heads train."""

    title: str
    name: str
    train: str
    test: str
    tasks: list[str]
    pretrain: str
    batch_size: int
    epochs: int
    out: Path

    @property
    def page_name(self) -> str:
        """What the command calls the data."""
        return "demo" if self.train == "demo:refine" else "FOLDER"


def arguments_of(doc: str | None, out: str) -> argparse.ArgumentParser:
    """The options of every table.

    Args:
        doc: the script's docstring.
        out: the default folder of its runs.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="demo", help="demo, or a folder with pretrain/, refine/ and test/")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="default: the demo's, or 5 for a folder")
    parser.add_argument("--batch-size", type=int, help="default: the demo's, or 128 for a folder")
    parser.add_argument("--retrieval-source", nargs="*", default=["fluent3d", "openclipart"])
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--doc", type=Path, help="the page to write; default docs/results/<table>-<data>.md")
    return parser


def setting_of(arguments: argparse.Namespace) -> Setting:
    """Where things lie; writes the table of the pictures that retrieval is judged on."""
    if arguments.data == "demo":
        from modalign.demo.run import BATCH_SIZE, EPOCHS

        return Setting(
            "the demo's pictures",
            "demo",
            "demo:refine",
            "demo:test",
            ["zero-shot:demo:test", "retrieval:demo:test"],
            "demo:pretrain",
            arguments.batch_size or BATCH_SIZE,
            arguments.epochs or EPOCHS,
            arguments.out / "demo",
        )
    folder = Path(arguments.data)
    out = arguments.out / folder.name
    out.mkdir(parents=True, exist_ok=True)
    retrieval = _table_of_sources(folder / "test", set(arguments.retrieval_source), out / "retrieval.csv")
    return Setting(
        f"{folder.name}/",
        folder.name,
        str(folder / "refine"),
        str(folder / "test"),
        [f"zero-shot:{folder / 'test'}", f"retrieval:{retrieval}"],
        str(folder / "pretrain"),
        arguments.batch_size or 128,
        arguments.epochs or 5,
        out,
    )


def _table_of_sources(folder: Path, wanted: set[str], target: Path) -> Path:
    """The rows of a metadata.csv whose `source` is wanted, as a table of their own."""
    with (folder / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("source") in wanted]
    if not rows:
        return folder
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text"])
        writer.writerows([str((folder / row["file_name"]).resolve()), row["text"]] for row in rows)
    return target


def base(setting: Setting, seed: int, memo: TrunkMemo) -> DualEncoder:
    """The pre-trained model of one seed, made on the first call."""
    if setting.pretrain == "demo:pretrain":
        return demo_model.base_model(seed, Reporter())
    folder = setting.out / f"base-seed{seed}"
    if not folder.is_dir():
        made = demo_model.untrained(seed)
        demo_model.cpu_friendly(made)
        demo_model.pretrain(made, sources.pairs(setting.pretrain), seed, Reporter(), memo)
        made.save(folder)
    model = load(str(folder))
    demo_model.cpu_friendly(model)
    return model


def recipe(setting: Setting, model: str, method: dict[str, Any], seed: int, **more: Any) -> Recipe:
    """The settings that all methods of a table share; `more` are recipe keys over them."""
    shared = {
        "data__train": setting.train,
        "data__batch_size": setting.batch_size,
        "train": "projection",
        "epochs": setting.epochs,
        "optimizer__lr": 3e-4,
        "evaluation__batch_size": 32,
        "seed": seed,
        "device": "cpu",
    }
    return load_recipe(None, model=model, method=dict(method), **{**shared, **more})


def folder_name(variant: str) -> str:
    """A variant's name as a folder's."""
    return variant.replace(" ", "-").replace(",", "").replace("=", "")


# ---- over seeds ---------------------------------------------------------------------------------------------


def joint(per_seed: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Mean over seeds of (estimate, low, high), with an interval that joins the seeds' own with their spread, ×100."""
    found = over_seeds([Difference(*values, 0.0) for values in per_seed])
    return 100 * found.estimate, 100 * found.low, 100 * found.high


def told(change: tuple[float, float, float]) -> str:
    """A change and its interval."""
    return f"{change[0]:+.1f} [{change[1]:+.1f}, {change[2]:+.1f}]"


def spread(values: list[float]) -> float:
    """Standard deviation over seeds; 0 of one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def mean_and_spread(values: list[float], places: int = 1) -> str:
    """Both, as text."""
    return f"{statistics.mean(values):.{places}f} ± {spread(values):.{places}f}"
