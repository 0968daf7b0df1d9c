"""How papers and tools judge: prompts, captions a picture, pictures a set, and the rule of a probe, as data.

A number is only met under the protocol it was made with. Each protocol also says what of the original it does not
follow, and results carry that beside the number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modalign.errors import RecipeError

__all__ = ["PROTOCOLS", "Protocol", "protocol_of"]


@dataclass(frozen=True)
class Protocol:
    """One way of judging.

    Attributes:
        name: as typed and told.
        templates: as `read_prompts` takes them.
        captions: how many captions of each picture retrieval looks at, the first ones; None = all.
        as_tensors: data sets whose pictures are resized as tensors, not as pictures.
        samples: data set → at most so many of its pictures, in proportion class by class.
        options: kind → options that a task of it has unless it says otherwise.
        not_met: kind, or kind:data set → what of the original is done otherwise here.
    """

    name: str
    templates: str = "single"
    captions: int | None = None
    as_tensors: frozenset[str] = frozenset()
    samples: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    not_met: Mapping[str, str] = field(default_factory=dict)

    def told(self, kind: str, data_set: str) -> dict[str, Any]:
        """What results say of it.

        Args:
            kind: of the task, as typed.
            data_set: the name of its data set, "" where it is none of the known.
        """
        unmet = [text for key, text in self.not_met.items() if key in (kind, f"{kind}:{data_set}")]
        return {"protocol": self.name, **({"not_met": "; ".join(unmet)} if unmet else {})}


CIFAR = "resized as tensors, bicubic and antialiased as torchvision does unless told otherwise: how is not told"

UNREAD = "the article's protocol could not be read: prompts, captions and data are chosen here"

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("default"),
        Protocol(
            "standard",
            templates="clip-benchmark",
            options={"linear-probe": {"rule": "adamw"}},
            not_met={
                "zero-shot": "equal classifiers count against, where CLIP_benchmark takes the first",
                "retrieval": "identical captions are shared positives and ties count against, unlike CLIP_benchmark",
            },
        ),
        Protocol("clip-refine", templates="single", captions=1),
        Protocol(
            "kuea",
            templates="clip-benchmark",
            as_tensors=frozenset({"cifar10", "cifar100"}),
            samples={"imagenet1k": 5_000},
            options={"linear-probe": {"rule": "adamw"}},
            not_met={
                "zero-shot": "which prompts is not told: CLIP_benchmark's",
                "zero-shot:imagenet1k": "which 5,000 pictures is not told: drawn class by class, by their names",
                "zero-shot:cifar10": CIFAR,
                "zero-shot:cifar100": CIFAR,
                "linear-probe": "pictures to test are normalised as those to train: the published script does not",
                "retrieval": "how many captions a picture is not told: all",
                "localization": "heads, optimiser, threshold and what is learned from are not told: chosen here",
            },
        ),
        Protocol(
            "tpc-cma",
            templates="single",
            not_met=dict.fromkeys(("zero-shot", "retrieval", "clustering", "captioning"), UNREAD),
        ),
    )
}


def protocol_of(name: str) -> Protocol:
    """A protocol by its name.

    Raises:
        RecipeError: no such protocol.
    """
    if name not in PROTOCOLS:
        raise RecipeError(f"no protocol {name!r}: use one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
