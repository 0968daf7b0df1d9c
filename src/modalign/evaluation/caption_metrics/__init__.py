"""CIDEr-D, BLEU and ROUGE-L as the COCO caption evaluation computes them, without Java."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modalign.errors import DataError
from modalign.evaluation.caption_metrics.bleu import BleuSums
from modalign.evaluation.caption_metrics.cider import cider_d
from modalign.evaluation.caption_metrics.rouge import rouge_l
from modalign.evaluation.caption_metrics.tokenizer import tokenize
from modalign.evaluation.statistics import Floats

__all__ = ["BleuSums", "CaptionScores", "caption_scores", "cider_d", "rouge_l", "tokenize"]


@dataclass(frozen=True)
class CaptionScores:
    """What a set of captions scores.

    Attributes:
        cider_d: N numbers from 0 to 10.
        rouge_l: N numbers from 0 to 1.
        bleu: the sums behind BLEU-1 … BLEU-4, which belong to the set and not to a caption.
    """

    cider_d: Floats
    rouge_l: Floats
    bleu: BleuSums


def caption_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Scores captions against their references.

    Args:
        candidates: N captions; an empty one scores 0.
        references: N lists of at least one reference; each caption may have another number of them.

    Returns:
        The `CaptionScores`.

    Raises:
        DataError: no captions, lists of different length, a caption without a reference.

    Source: Chen et al., "Microsoft COCO Captions", arXiv 1504.00325, section 3.
    """
    if len(candidates) != len(references) or not len(candidates):
        raise DataError(
            f"{len(candidates):,} captions and {len(references):,} lists of references: pass one list a caption"
        )
    if alone := [number for number, of_image in enumerate(references) if not len(of_image)]:
        raise DataError(f"caption {alone[0]} has no reference: leave it out, or give it at least 1")
    said = [tokenize(caption) for caption in candidates]
    meant = [[tokenize(reference) for reference in of_image] for of_image in references]
    return CaptionScores(cider_d(said, meant), rouge_l(said, meant), BleuSums.of(said, meant))
