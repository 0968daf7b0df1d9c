"""The numbers that the papers print, to be shown beside ours: each with its protocol, none averaged with another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from pydantic import BaseModel, ConfigDict

from modalign.evaluation.class_names import recognised
from modalign.evaluation.linear_probe import RULES, Rule
from modalign.evaluation.suites import CLIP_REFINE, KUEA

__all__ = ["AVERAGES", "Document", "Protocol", "Published", "beside", "data_set_of", "lines_of", "published"]

# Data sets without classes, by the parts of a spec that name them.
NAMED = {
    "coco": "coco",
    "mscoco_captions": "coco",
    "coco-panoptic": "coco",
    "coco-stuff": "coco",
    "flickr30k": "flickr30k",
    "mmvp_vlm": "mmvp_vlm",
    "mmvp-vlm": "mmvp_vlm",
}

# The papers' averages, by the sets that they are of.
AVERAGES: dict[str, frozenset[str]] = {
    "clip-refine-12": frozenset(CLIP_REFINE),
    "kuea-11": frozenset(KUEA) - {"imagenet1k"},
}


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Document(_Entry):
    """Where numbers are from."""

    title: str
    source: str


class Protocol(_Entry):
    """How a number was made, as far as its source says; None where it does not.

    Attributes:
        told: in words.
        prompts: the name of the templates, as results call them.
        samples: how many pictures were judged.
        captions_per_image: as results tell it.
        probe: the rule of a linear probe, as its option names it.
    """

    told: str
    prompts: str | None = None
    samples: int | None = None
    captions_per_image: str | None = None
    probe: Rule | None = None

    def differences(self, ours: Mapping[str, Any]) -> list[str]:
        """What our protocol does otherwise, as far as this one says.

        Args:
            ours: the protocol of a task's result.
        """
        stated = {
            "prompts": self.prompts,
            "samples": self.samples,
            "captions_per_image": self.captions_per_image,
            "probe": self.probe,
        }
        if "probe" in ours:  # results tell the rule in words
            ours = {**ours, "probe": next((rule for rule, told in RULES.items() if told == ours["probe"]), "another")}
        return [
            f"{key.replace('_', ' ')} {_said(theirs)} there, {_said(ours[key])} here"
            for key, theirs in stated.items()
            if theirs is not None and key in ours and str(ours[key]) != str(theirs)
        ]


class Published(_Entry):
    """One number.

    Attributes:
        paper: the document's key: "clip-refine", "kuea", "tpc-cma", "clip-refine-reproduction".
        document: the document.
        table: where in it.
        model: whose number it is, by architecture: "ViT-B/32".
        row: what was done to it: "pre-trained", "CLIP-Refine".
        data_set: as `class_names` calls it; or "coco", "flickr30k", or an average's name.
        metric: as results call it ("zero_shot.acc1"); ".change" at its end marks a difference from the model before.
        value: as printed.
        unit: "%", "points", "hours", "images/s", or "".
        protocol: how it was made.
        suspect: a reason to doubt it, or "".
    """

    paper: str
    document: Document
    table: str
    model: str
    row: str
    data_set: str
    metric: str
    value: float
    unit: str
    protocol: Protocol
    suspect: str = ""

    @property
    def number(self) -> str:
        """The value with its unit."""
        sign = "+" if self.metric.endswith(".change") else ""
        return f"{self.value:{sign}.6g}" + {"": "", "%": " %"}.get(self.unit, f" {self.unit}")

    def line(self, ours: Mapping[str, Any] | None = None) -> str:
        """One line to print beside our number.

        Args:
            ours: the protocol of our result, to tell what differs.
        """
        told = f"published: {self.number} ({self.row}, {self.model}; {self.paper}, {self.table}; {self.protocol.told})"
        if ours is not None and (otherwise := self.protocol.differences(ours)):
            told += f" — protocol differs: {'; '.join(otherwise)}"
        return told + (f" — suspect: {self.suspect}" if self.suspect else "")


class _Table(_Entry):
    document: str
    table: str
    model: str
    protocol: str
    data_set: str
    metric: str
    unit: str
    rows: dict[str, float]
    suspect: str = ""


class _File(_Entry):
    documents: dict[str, Document]
    protocols: dict[str, Protocol]
    tables: tuple[_Table, ...]


def published(
    *, paper: str | None = None, data_set: str | None = None, metric: str | None = None, model: str | None = None
) -> tuple[Published, ...]:
    """The published numbers, in the order of the documents; without arguments all of them.

    Args:
        paper: only of this document.
        data_set: only on this data set.
        metric: only of this metric.
        model: only of this architecture, in any spelling ("ViT-B/32", "ViT-B-32-quickgelu").
    """
    wanted = None if model is None else _architecture(model)
    return tuple(
        number
        for number in _all()
        if paper in (None, number.paper)
        and data_set in (None, number.data_set)
        and metric in (None, number.metric)
        and wanted in (None, _architecture(number.model))
    )


def beside(spec: str, metric: str, *, model: str = "", protocol: Mapping[str, Any] | None = None) -> list[str]:
    """The lines to print beside one of our numbers.

    Args:
        spec: our data; its data set is told by its parts.
        metric: ours, such as "zero_shot.acc1".
        model: our model's spec; numbers of its architecture go alone where there are any.
        protocol: of our result.

    Returns:
        A line for each published number of this data set and metric; none where there is no such number.
    """
    name = data_set_of(spec)
    return [] if name is None else lines_of(name, metric, model=model, protocol=protocol)


def lines_of(data_set: str, metric: str, *, model: str = "", protocol: Mapping[str, Any] | None = None) -> list[str]:
    """As `beside`, of a data set or an average by its name here; changes go with the architecture that they are of."""
    found = published(data_set=data_set, metric=metric)
    same, moved = (
        published(data_set=data_set, metric=name, model=model) if model else () for name in (metric, f"{metric}.change")
    )
    return [number.line(protocol) for number in (*(same or found), *moved)]


def data_set_of(spec: str) -> str | None:
    """What the data of a spec is called here, or None."""
    for part in re.split(r"[@:/\\]", spec.casefold()):
        name = re.sub(r"^wds_(vtab-)?", "", part)
        if name in NAMED:
            return NAMED[name]
    known = recognised(spec)
    return None if known is None else known.name


@cache
def _all() -> tuple[Published, ...]:
    import yaml

    text = resources.files("modalign.evaluation").joinpath("published.yaml").read_text(encoding="utf-8")
    file = _File.model_validate(yaml.safe_load(text))
    return tuple(
        Published(
            paper=table.document,
            document=file.documents[table.document],
            table=table.table,
            model=table.model,
            row=row,
            data_set=table.data_set,
            metric=table.metric,
            value=value,
            unit=table.unit,
            protocol=file.protocols[table.protocol],
            suspect=table.suspect,
        )
        for table in file.tables
        for row, value in table.rows.items()
    )


def _architecture(model: str) -> str:
    """ "open_clip:ViT-L-14-336-quickgelu/openai" and "ViT-L/14-336" → "vitl14336"; else the text without marks."""
    plain = re.sub(r"[^a-z0-9]", "", model.casefold())
    found = re.search(
        r"vit(?:b32|b16|l14)(?:336)?", plain.replace("patch", "").replace("base", "b").replace("large", "l")
    )
    family = next((name for name in ("siglip", "metaclip", "dfn") if name in plain), "")
    return family or (found[0] if found else plain)


def _said(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
