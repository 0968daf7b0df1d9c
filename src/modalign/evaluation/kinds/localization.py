"""`localization:SPEC`: heads on frozen patch tokens that tell which class lies in which patch, and in the picture."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from modalign.data.bad_rows import BadRows
from modalign.data.images import image_batches
from modalign.data.pictures import files_identity, relative_names
from modalign.data.records import Images, real_paths
from modalign.data.subset import nested_order
from modalign.errors import DataError
from modalign.evaluation import localization
from modalign.evaluation.kinds.base import NO_NUMBERS, Context, Encoded, Judged, Option, whole
from modalign.evaluation.kinds.reading import Numbers, Reading
from modalign.evaluation.panoptic import ClassMaps, class_maps
from modalign.evaluation.results import TaskResult
from modalign.evaluation.scoring import digest, split_of
from modalign.models.dual_encoder import DualEncoder

HELD = 0.2


def _share(text: str) -> float:
    if not 0 <= float(text) < 1:
        raise ValueError(text)
    return float(text)


@dataclass(frozen=True)
class Localization(Judged):
    """Pictures with maps of classes.

    Attributes:
        data: the pictures.
        pictures: none, for the tokens are made here.
        maps: the maps of the pictures judged.
        train: those of the pictures that the heads learn from.
        given: the options.
    """

    name: ClassVar[str] = "localization"
    needs_model: ClassVar[bool] = True
    version: ClassVar[int] = 3
    options: ClassVar[Mapping[str, Option]] = {
        "train": Option("", str, "a split to learn from, such as train2017"),
        "layer": Option(-1, int, "a layer of the image tower, such as -1 or -2"),
        "area": Option(0.0, _share, "a share between 0 and 1"),
        "steps": Option(localization.STEPS, whole(1), "a whole number ≥ 1"),
        "pictures": Option(5_000, whole(1), "a whole number ≥ 1"),
    }

    data: Images
    maps: ClassMaps
    train: ClassMaps
    given: Mapping[str, Any]

    @classmethod
    def read(cls, reading: Reading, spec: str, options: Mapping[str, Any]) -> Localization:
        """Maps of a split, and of the one to learn from: another split, or four fifths of this one."""
        judged = class_maps(spec, max_bad=reading.max_bad)
        if options["train"]:
            train = class_maps(f"{spec.rpartition('@')[0]}@{options['train']}", max_bad=reading.max_bad)
            train = _taken(train, sorted(_drawn(train)[: options["pictures"]]))
        else:
            order = _drawn(judged)
            held = max(1, round(HELD * len(order)))
            if held == len(order):
                raise DataError(f"{spec} has {len(order)} picture: too few to learn from some; pass more")
            train = _taken(judged, sorted(order[held:][: options["pictures"]]))
            judged = _taken(judged, sorted(order[:held]))
        return cls(judged.data, NO_NUMBERS, judged, train, options)

    def score_model(self, model: DualEncoder, encoded: Encoded, row: Tensor, context: Context) -> TaskResult:
        """Macro recall of patches ("local") and of whole pictures ("global")."""
        layer, area = self.given["layer"], self.given["area"]
        with tempfile.TemporaryDirectory(prefix="modalign-tokens-") as place:
            seen = _tokens(model, self.train, layer, area, context, Path(place) / "train")
            heads = localization.train_heads(
                seen.tokens, seen.labels, steps=self.given["steps"], seed=context.seed, device=model.device
            )
            learned, names = seen.examples, list(self.train.names)
            del seen
            seen = _tokens(model, self.maps, layer, area, context, Path(place) / "judged")
            found = localization.recalls(heads, seen.tokens, seen.labels)
            kept, judged = seen.kept, seen.examples
            del seen
        protocol = {
            "split": split_of(self.data.spec),
            "samples": len(kept),
            "left_out": len(self.data) - len(kept),
            "learned_from": self.given["train"] or f"the other {1 - HELD:.0%} of the split",
            "training_pictures": len(learned),
            "training_examples": digest([names, learned]),
            "layer": layer,
            "area": f"more than {area:g} of a patch",
            "classes": len(np.unique(found[1].classes)),
            "heads": "local: linear; global: one learned query, then linear",
            "steps": f"{self.given['steps']} of {localization.BATCH} pictures",
            "seed": context.seed,
            "threshold": 0.5,
            "examples": digest([list(self.maps.names), judged]),
        }
        numbers = Numbers()(self.apart).numpy()[kept]
        metrics = {}
        for name, side in zip(("local_macro_recall", "global_macro_recall"), found, strict=True):
            metrics[name] = context.metric(
                name, side.outcomes, clusters=numbers[side.pictures], strata=side.classes, average="strata"
            )
        return TaskResult(self.name, self.data.spec, protocol, metrics)

    @property
    def apart(self) -> list[str]:
        """The pictures that are judged."""
        return real_paths(self.data.paths)

    def facts(self) -> list[Any]:
        """The pictures and maps on both sides."""
        sides = [
            [
                files_identity([*side.data.paths, *(m.path for m in side.maps)]),
                [m.listed for m in side.maps],
                side.names,
            ]
            for side in (self.maps, self.train)
        ]
        return [*super().facts(), sides]


def _drawn(maps: ClassMaps) -> list[int]:
    """The pictures in an order drawn by their names, so that neither their place nor the file's order decides."""
    numbers = {name: i for i, name in enumerate(relative_names(maps.data.paths, real_paths(maps.data.paths)))}
    return [numbers[name] for name in nested_order(dict.fromkeys(numbers, 0), 0)]


def _taken(maps: ClassMaps, numbers: Sequence[int]) -> ClassMaps:
    data = Images(maps.data.spec, tuple(maps.data.rows[i] for i in numbers))
    return ClassMaps(data, tuple(maps.maps[i] for i in numbers), maps.names)


@dataclass(frozen=True)
class _Seen:
    """What a tower makes of N of the pictures.

    Attributes:
        tokens: N×T×w, half precision, in a file.
        labels: N×T×C booleans.
        kept: N positions, of those that could be read.
        examples: N pairs: what the picture is called, and a hash of its map.
    """

    tokens: Tensor
    labels: Tensor
    kept: list[int]
    examples: list[tuple[str, str]]


@torch.no_grad()
def _tokens(model: DualEncoder, maps: ClassMaps, layer: int, area: float, context: Context, file: Path) -> _Seen:
    """The patch tokens and labels of the pictures that can be read; the tokens are put in the file."""
    window, bad = localization.Window(model.preprocess), BadRows(context.max_bad, len(maps.data))
    store: Any = None
    labels: list[Tensor] = []
    kept: list[int] = []
    examples: list[tuple[str, str]] = []
    batches = torch.arange(len(maps.data)).split(min(context.batch_size, localization.BATCH))
    for batch in image_batches(maps.data.paths, maps.data.wheres, model.preprocess, batches, workers=context.workers):
        bad.add(batch.bad)
        bad.check()
        if not len(batch.index):
            continue
        found = model.encode_tokens(batch.pixels.to(model.device, model.dtype), layer)
        patches = found.patches.cpu().half().numpy()
        if not np.isfinite(patches).all():
            raise DataError(
                f"{model.spec}: tokens of layer {layer} are not finite in half precision; take another layer"
            )
        if store is None:
            shape = (len(maps.data), *patches.shape[1:])
            store = np.memmap(file, np.float16, "w+", shape=shape)
        for number, position in enumerate(batch.index.tolist()):
            store[len(kept)] = patches[number]
            classes = maps.maps[position].read()
            labels.append(localization.patch_labels(classes, window, found.grid, len(maps.names), area))
            kept.append(position)
            content = hashlib.sha256(repr(classes.shape).encode() + classes.astype(np.int32).tobytes())
            examples.append((maps.data.paths[position].name, content.hexdigest()[:16]))
    bad.finish()
    if store is None:
        raise DataError(f"{maps.data.spec}: none of its {len(maps.data):,} pictures can be read; check the files")
    return _Seen(torch.from_numpy(store)[: len(kept)], torch.stack(labels), kept, examples)
