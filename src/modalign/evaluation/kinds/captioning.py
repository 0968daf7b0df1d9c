"""`captioning:SPEC`: captions written from image features by a decoder that only ever saw text features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from modalign.data.records import Pairs
from modalign.errors import RecipeError
from modalign.evaluation.kinds.base import Context, Encoded, Judged, Option, whole
from modalign.evaluation.kinds.learning import SEED
from modalign.evaluation.kinds.reading import Reading
from modalign.evaluation.results import Metric, TaskResult
from modalign.evaluation.scoring import digest, readable_of, split_of
from modalign.models.dual_encoder import DualEncoder

if TYPE_CHECKING:
    from modalign.evaluation.captioning import Settings

SHOWN = 20
"""Pictures whose captions are kept with the results."""


@dataclass(frozen=True)
class Captioning(Judged):
    """`captioning[corpus=SPEC,memory=SPEC,epochs=…,beams=…,keep=FOLDER,seed=…]:SPEC`: pictures with reference captions.

    Attributes:
        corpus: C numbers of strings: what the decoder learns to say.
        memory: M numbers of strings: what image features are projected on.
        given: the options.
    """

    name: ClassVar[str] = "captioning"
    version: ClassVar[int] = 2
    needs_model: ClassVar[bool] = True
    options: ClassVar[Mapping[str, Option]] = {
        "corpus": Option("", str, "a text file, a table or a spec of pairs"),
        "memory": Option("", str, "a text file, a table or a spec of pairs"),
        "epochs": Option(None, whole(1), "a whole number ≥ 1"),
        "beams": Option(1, whole(1), "a whole number ≥ 1"),
        "keep": Option("", str, "a folder"),
        "seed": SEED,
    }

    data: Pairs
    corpus: Tensor
    memory: Tensor
    given: Mapping[str, Any]

    @classmethod
    def read(cls, reading: Reading, spec: str, options: Mapping[str, Any]) -> Captioning:
        """Pairs of a spec, the corpus, and the memory, which is the corpus unless named."""
        from modalign.evaluation.captioning import read_captions

        if not options["corpus"]:
            raise RecipeError(
                "task captioning: no corpus to learn from; write captioning[corpus=FILE]:SPEC, "
                "FILE being text with one caption a line, a table or a spec of pairs"
            )
        pairs = reading.pairs(spec)
        texts = {
            source: read_captions(source, text_column=reading.text_column, max_bad=reading.max_bad)
            for source in (options["corpus"], options["memory"])
            if source
        }
        corpus, memory = options["corpus"], options["memory"] or options["corpus"]
        return cls(
            pairs, reading.numbered(pairs), reading.strings(texts[corpus]), reading.strings(texts[memory]), options
        )

    @property
    def strings(self) -> Tensor:
        """Those of the corpus, then those of the memory; the references are not embedded."""
        return torch.cat([self.corpus, self.memory])

    def facts(self) -> list[Any]:
        """The references too, and where the memory begins."""
        return [*super().facts(), len(self.corpus), [list(row.captions) for row in self.data.rows]]

    def score_model(self, model: DualEncoder, encoded: Encoded, row: Tensor, context: Context) -> TaskResult:
        """Trains the decoder on text features, feeds it image features as they are and projected, scores both."""
        from modalign.evaluation.caption_metrics import caption_scores
        from modalign.evaluation.captioning import Settings, project_on_memory, train_decoder

        pictures, references = self._references(row)
        said = [context.strings[i] for i in self.corpus.tolist()]
        settings = Settings.for_corpus(len(said), epochs=self.given["epochs"], seed=self.given["seed"])
        keep = Path(self.given["keep"]).expanduser() if self.given["keep"] else None
        image = encoded.image[row[pictures]].float()
        ways = {"direct": image, "memory": project_on_memory(image, encoded.text[self.memory].float())}
        decoder = train_decoder(encoded.text[self.corpus], said, settings, device=model.device, keep=keep)
        captions = {way: decoder.generate(features, self.given["beams"]) for way, features in ways.items()}
        metrics: list[Metric] = []
        for way, written in captions.items():
            found = caption_scores(written, references)
            clusters = pictures.numpy()
            metrics.append(
                context.metric(f"{way}_cider_d", found.cider_d, clusters=clusters, unit="CIDEr-D", tolerance=0.02)
            )
            drawn = np.quantile(found.bleu.resampled(context.resamples, context.seed), [0.025, 0.975], axis=0)
            for order, moved in enumerate(found.bleu.contributions().T):
                metric = context.metric(f"{way}_bleu_{order + 1}", moved, clusters=clusters)
                metrics.append(replace(metric, interval=(float(drawn[0, order]), float(drawn[1, order]))))
            metrics.append(context.metric(f"{way}_rouge_l", found.rouge_l, clusters=clusters))
        names = [context.paths[i].name for i in pictures.tolist()]
        notes = {
            "captions": [
                {"picture": names[i], **{way: written[i] for way, written in captions.items()}, "references": reference}
                for i, reference in enumerate(references[:SHOWN])
            ]
        }
        supports = [context.strings[i] for i in self.memory.tolist()]
        told = self._protocol(said, supports, settings, names, references)
        told["left_out"] = len(self.pictures.unique()) - len(pictures)
        return TaskResult(self.name, self.data.spec, told, {metric.name: metric for metric in metrics}, notes=notes)

    def _references(self, row: Tensor) -> tuple[Tensor, list[list[str]]]:
        """The distinct pictures that could be read, each with all captions of its rows."""
        readable = readable_of(self, row)
        found: dict[int, list[str]] = {}
        for i in readable.nonzero().flatten().tolist():
            found.setdefault(int(self.pictures[i]), []).extend(self.data.rows[i].captions)
        return torch.tensor(list(found)), [list(dict.fromkeys(captions)) for captions in found.values()]

    def _protocol(
        self, corpus: list[str], memory: list[str], settings: Settings, names: list[str], references: list[list[str]]
    ) -> dict[str, Any]:
        from modalign.evaluation.captioning.decoder import HEADS, LAYERS

        counts = [len(of_image) for of_image in references]
        known = set(corpus)
        beams = self.given["beams"]
        return {
            "split": self.data.split or split_of(self.data.spec),
            "samples": len(names),
            "references": f"{min(counts)}" if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}",
            "references_in_corpus": sum(caption.strip() in known for of_image in references for caption in of_image),
            "corpus": self.given["corpus"],
            "corpus_captions": len(corpus),
            "memory": self.given["memory"] or "the corpus",
            "memory_captions": len(memory),
            "decoder": f"GPT-2 of {LAYERS} layers, {HEADS} heads, width {settings.width}, lower-case BPE of the corpus "
            f"({settings.vocabulary} at most), trained on text features alone",
            "epochs": settings.epochs,
            "seed": settings.seed,
            "decoding": "greedy" if beams == 1 else f"beam search of {beams}",
            "document_frequency": "from the references judged",
            "tokeniser": "Penn Treebank, lower-case, punctuation dropped",
            "examples": digest([corpus, memory, [[name, of] for name, of in zip(names, references, strict=True)]]),
        }
