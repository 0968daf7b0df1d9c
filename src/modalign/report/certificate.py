"""What is certain of the pictures of a run whose text tower did not train, and how near they came to its target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modalign.evaluation.certificate import Certified
from modalign.report.wording import number, signed

NAMES = {
    "kernel_loss": ("kernel loss", "lower is nearer"),
    "cka": ("CKA", "higher is nearer"),
    "mutual_knn": ("mutual {}-NN", "higher is nearer; chance {}"),
}


@dataclass(frozen=True)
class Certainty:
    """One certificate as the page shows it.

    Args:
        title: whose pictures.
        protocol: how it was taken.
        bounds: rows of text, the first the header.
        labels: likewise; () where no classes are known.
    """

    title: str
    protocol: str
    bounds: tuple[tuple[str, ...], ...]
    labels: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Nearness:
    """One measure of agreement with the target: name, which way is nearer, before, after and the change."""

    name: str
    note: str
    before: str
    after: str
    change: str


def certainties(evaluation: Mapping[str, Any]) -> list[Certainty]:
    """The certificate over all pictures and those of the drift tasks.

    Args:
        evaluation: the contents of evaluation.json.
    """
    stored = [evaluation.get("certificate"), *((evaluation.get("after") or {}).get("drift") or ())]
    return [_certainty(Certified.from_dict(found)) for found in stored if found]


def _certainty(found: Certified) -> Certainty:
    labels = found.label_rows() if found.labels else []
    told = "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in found.protocol.items())
    return Certainty(found.spec, told, tuple(map(tuple, found.bound_rows())), tuple(map(tuple, labels)))


def nearness(evaluation: Mapping[str, Any]) -> tuple[list[Nearness], str] | None:
    """The measures of agreement with the target, and how they were taken; None for a run without one.

    Args:
        evaluation: the contents of evaluation.json.
    """
    stored = evaluation.get("target_alignment")
    if not stored:
        return None
    before, after, protocol = stored["before"], stored["after"], stored["protocol"]
    rows = []
    for key, (name, note) in NAMES.items():
        first, last = float(before[key]), float(after[key])
        rows.append(
            Nearness(
                name.format(protocol["neighbours"]),
                note.format(number(float(protocol["chance_of_a_neighbour"]))),
                number(first),
                number(last),
                signed(last - first, max(abs(first), abs(last))),
            )
        )
    return rows, f"{protocol['pictures']:,} pictures; kernels {protocol['kernels']}; estimator {protocol['estimator']}"
