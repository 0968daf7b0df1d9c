"""`retrieval:SPEC`: pictures find their captions, captions their pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from modalign.data.records import Pairs
from modalign.errors import DataError
from modalign.evaluation import retrieval
from modalign.evaluation.kinds.base import Context, Encoded, Judged
from modalign.evaluation.kinds.reading import Reading
from modalign.evaluation.results import Features, TaskResult
from modalign.evaluation.scoring import digest, split_of


@dataclass(frozen=True)
class Retrieval(Judged):
    """Pairs, one entry a caption.

    Attributes:
        data: what is judged.
        pictures: M numbers.
        captions: M numbers of strings.
    """

    name: ClassVar[str] = "retrieval"

    data: Pairs
    captions: Tensor

    @property
    def strings(self) -> Tensor:
        """M numbers among the suite's strings."""
        return self.captions

    @classmethod
    def read(cls, reading: Reading, spec: str, options: Mapping[str, Any]) -> Retrieval:
        """Pairs of a spec, as many captions a picture as the protocol says; white space around them is ignored."""
        pairs = reading.pairs(spec)
        pictures = reading.numbered(pairs)[pairs.caption_rows]
        said = [caption.strip() for caption in pairs.captions]
        if (most := reading.protocol.captions) is not None:
            order = pictures.argsort(stable=True)
            first = torch.searchsorted(pictures[order], pictures[order])
            kept = order[torch.arange(len(order)) - first < most].sort().values
            pictures, said = pictures[kept], [said[i] for i in kept.tolist()]
        return cls(pairs, pictures, reading.strings(said))

    def score(self, encoded: Encoded, row: Tensor, context: Context) -> TaskResult:
        """Recall at 1, 5 and 10, mean average precision and median rank, both ways."""
        shown = self._shown(encoded, row, context)
        numbers, strings = self._readable(row)
        ways = retrieval.retrieve(shown.image, shown.text, shown.image_of_text, strings)
        # Queries with one string have one outcome: they are drawn together, with their pictures' other captions.
        ids = {
            "image_to_text": {"clusters": numbers.unique().numpy()},
            "text_to_image": {
                "clusters": retrieval.linked_captions(shown.image_of_text, strings).numpy(),
                "pictures": numbers.numpy(),
            },
        }
        metrics = [
            context.metric(f"{way}_r{k}", found.hits(k), **ids[way])
            for way, found in ways.items()
            for k in retrieval.RECALLS
        ]
        for way, found in ways.items():
            metrics.append(context.metric(f"{way}_map", found.precision, **ids[way]))
            metrics.append(
                context.metric(
                    f"{way}_median_rank",
                    found.rank,
                    average="median",
                    higher_is_better=False,
                    unit="rank",
                    tolerance=1.0,
                    **ids[way],
                )
            )
        sizes = torch.bincount(shown.image_of_text)
        alike = torch.unique(strings, return_counts=True)[1]
        fewest, most = int(sizes.min()), int(sizes.max())
        owners = shown.image_of_text.tolist()
        protocol = {
            "split": self.data.split or split_of(self.data.spec),
            "samples": len(shown.paths),
            "left_out": len(self.pictures.unique()) - len(shown.paths),
            "captions": len(shown.captions),
            "captions_per_image": f"{fewest}" if fewest == most else f"{fewest} to {most}",
            "captions_not_unique": int(alike[alike > 1].sum()),
            "identical_captions": retrieval.IDENTICAL_CAPTIONS,
            "ties": retrieval.TIES,
            "examples": digest([[shown.paths[i].name, c] for i, c in zip(owners, shown.captions, strict=True)]),
        }
        return TaskResult(self.name, self.data.spec, protocol, {metric.name: metric for metric in metrics})

    def features(self, encoded: Encoded, row: Tensor, context: Context) -> Features:
        """All pictures that could be read, with their captions."""
        return self._shown(encoded, row, context)

    def _readable(self, row: Tensor) -> tuple[Tensor, Tensor]:
        """The pictures and strings of each caption whose picture could be read."""
        readable = row[self.pictures] >= 0
        if not bool(readable.any()):
            raise DataError(f"{self.data.spec}: none of its {len(self.data):,} pictures can be read; check the files")
        return self.pictures[readable], self.captions[readable]

    def _shown(self, encoded: Encoded, row: Tensor, context: Context) -> Features:
        pictures, strings = self._readable(row)
        numbers, image_of_text = torch.unique(pictures, return_inverse=True)
        return Features(
            encoded.image[row[numbers]],
            encoded.text[strings],
            [context.paths[i] for i in numbers.tolist()],
            [context.strings[i] for i in strings.tolist()],
            image_of_text,
        )
