"""`mixed-retrieval:SPEC`: captions find pictures and other captions in one pool of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from modalign.data.records import Pairs
from modalign.errors import DataError
from modalign.evaluation import mixed_retrieval
from modalign.evaluation.kinds.base import Context, Encoded, Judged
from modalign.evaluation.kinds.reading import Reading
from modalign.evaluation.results import TaskResult
from modalign.evaluation.scoring import digest, readable_of, split_of


@dataclass(frozen=True)
class MixedPool(Judged):
    """Pairs, one entry a caption; each picture's first caption asks, and the others are documents.

    Attributes:
        data: what is judged.
        pictures: M numbers.
        captions: M numbers of strings.
    """

    name: ClassVar[str] = "mixed_retrieval"

    data: Pairs
    captions: Tensor

    @property
    def strings(self) -> Tensor:
        """M numbers among the suite's strings."""
        return self.captions

    @classmethod
    def read(cls, reading: Reading, spec: str, options: Mapping[str, Any]) -> MixedPool:
        """Pairs of a spec; white space around captions is ignored."""
        pairs = reading.pairs(spec)
        pictures = reading.numbered(pairs)[pairs.caption_rows]
        return cls(pairs, pictures, reading.strings([caption.strip() for caption in pairs.captions]))

    def score(self, encoded: Encoded, row: Tensor, context: Context) -> TaskResult:
        """Recall and NDCG at 1, 5 and 10 over the pool; how much of it each modality takes, in the notes."""
        readable = readable_of(self, row)
        pictures, strings = self.pictures[readable], self.captions[readable]
        numbers, owner = torch.unique(pictures, return_inverse=True)
        first = torch.full((len(numbers),), len(owner)).scatter_reduce_(0, owner, torch.arange(len(owner)), "amin")
        asked = strings[first].unique()
        documents = strings[~torch.isin(strings, asked)].unique()  # what asks would find itself
        if not len(documents):
            raise DataError(
                f"{self.data.spec}: no picture has a second caption, so the pool has no texts; name data with several "
                "captions a picture"
            )
        place = {string: len(numbers) + position for position, string in enumerate(documents.tolist())}
        said: dict[int, list[int]] = {}  # picture → its strings that are documents
        carried: dict[int, list[int]] = {}  # string → the pictures that carry it
        for picture, string in zip(owner.tolist(), strings.tolist(), strict=True):
            carried.setdefault(string, []).append(picture)
            if string in place:
                said.setdefault(picture, []).append(place[string])
        judged = sorted(
            {
                (query, document)
                for query, string in enumerate(asked.tolist())
                for picture in carried[string]
                for document in (picture, *said.get(picture, ()))
            }
        )
        found = mixed_retrieval.mixed_retrieval(
            encoded.text[asked],
            torch.cat([encoded.image[row[numbers]], encoded.text[documents]]),
            ["image"] * len(numbers) + ["text"] * len(documents),
            torch.tensor(judged),
        )
        owners = numbers[torch.tensor([carried[string][0] for string in asked.tolist()])].numpy()
        metrics = {
            name: context.metric(name, values, pictures=owners)
            for name, values in found.outcomes.items()
            if not name.startswith("share")
        }
        shares = {name: float(values.mean()) for name, values in found.outcomes.items() if name.startswith("share")}
        protocol = {
            "split": self.data.split or split_of(self.data.spec),
            "samples": len(numbers),
            "left_out": len(self.pictures.unique()) - len(numbers),
            "queries": len(asked),
            "texts_in_pool": len(documents),
            "asked_by": "each picture's first caption, equal ones once",
            "relevant": "the pictures that carry the query, and the other captions of those",
            "ties": mixed_retrieval.TIES,
            "examples": digest(
                [
                    [context.paths[picture].name, context.strings[string]]
                    for picture, string in zip(pictures.tolist(), strings.tolist(), strict=True)
                ]
            ),
        }
        notes = {**shares, "share_of_pool": found.pool_share, "share_of_relevant": found.relevant_share}
        return TaskResult(self.name, self.data.spec, protocol, metrics, notes=notes)
