"""`cross-modal:SPEC`: a linear classifier learned on one modality and judged on the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from modalign.evaluation import cross_modal, linear_probe
from modalign.evaluation.kinds.base import Context, Encoded, Option
from modalign.evaluation.kinds.learning import SCALE, SEED, TEXT, Learning, captions_of, class_prompts
from modalign.evaluation.kinds.reading import Reading
from modalign.evaluation.results import TaskResult
from modalign.evaluation.scoring import texts_digest


@dataclass(frozen=True)
class CrossModal(Learning):
    """`cross-modal[text=captions,scale=…,seed=…]:SPEC`: half of each class is learned from, the other half judged.

    Attributes:
        texts: numbers of strings: of captions N, one a row of `data`; of prompts C×T.
        prompts: the templates' name, "" with captions.
    """

    name: ClassVar[str] = "cross_modal"
    what: ClassVar[str] = "cross-modal transfer"
    options: ClassVar[Mapping[str, Option]] = {"text": TEXT, "scale": SCALE, "seed": SEED}

    texts: Tensor
    prompts: str

    @classmethod
    def read(cls, reading: Reading, spec: str, options: Mapping[str, Any]) -> CrossModal:
        """Labelled pictures, and their captions or the prompts of their classes."""
        parts = cls.read_parts(reading, spec, options)
        if options["text"] == "captions":
            return cls(**parts, texts=captions_of(reading, parts["data"]), prompts="")
        prompts, texts = class_prompts(reading, parts["data"])
        return cls(**parts, texts=texts, prompts=prompts.name)

    @property
    def strings(self) -> Tensor:
        """Numbers among the suite's strings."""
        return self.texts

    def facts(self) -> list[Any]:
        """What is judged and learned from, and how the templates are called."""
        return [*super().facts(), self.prompts]

    def score(self, encoded: Encoded, row: Tensor, context: Context) -> TaskResult:
        """Accuracies within and across modalities, and their ratios."""
        learn, judge, judged = self.parts(encoded, row)
        learned = {"image": (learn.features, learn.labels)}
        judges = {"image": (judge.features, judge.labels)}
        told: dict[str, Any] = {"text": self.chosen["text"], "probe": linear_probe.RULES["logistic"]}
        among: dict[str, tuple[float, ...]] = {}
        if self.chosen["text"] == "captions":
            seen = (row[self.pictures] >= 0) & ~judged
            learned["text"] = (encoded.text[self.texts[seen]], self.labels[seen])
            judges["text"] = (encoded.text[self.texts[judged]], judge.labels)
            told["texts"] = texts_digest(torch.cat([self.texts[seen], self.texts[judged]]), context)
            told["captions_on_both_sides"] = len(set(self.texts[seen].tolist()) & set(self.texts[judged].tolist()))
        else:
            classes, templates = self.texts.shape
            learned["text"] = (
                encoded.text[self.texts].flatten(0, 1),
                torch.arange(classes).repeat_interleave(templates),
            )
            among["text"] = (linear_probe.UNCHOSEN,)
            told |= {"prompts": self.prompts, "texts": texts_digest(self.texts, context)}
            told["penalty_of_the_text_probe"] = linear_probe.UNCHOSEN
        found = cross_modal.cross_modal(
            learned,
            judges,
            len(self.class_names),
            scale=self.chosen["scale"],
            penalties=among,
            seed=self.chosen["seed"],
        )
        outcomes = {**found.outcomes, **found.ratios}
        return self.result(learn, judged, outcomes, told, found.notes, context, row)
