"""What `evaluation.drift` found, as it is written, printed and shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from modalign.evaluation.drift import Certificate

SHOWN = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
"""The levels of the quantiles that tables hold; the file holds the smallest bound too."""


@dataclass(frozen=True)
class Labels:
    """How many zero-shot labels are certain.

    Attributes:
        spec: whose classes they are.
        pictures: n, of the pictures that have a class there.
        classes: C.
        prompts: the name of the templates.
        certified: share whose lead over the runner-up, before, was more than twice the tight bound.
        certified_loosely: the same by the paper's bound.
        unchanged: share whose label really is the same; never below `certified`.
    """

    spec: str
    pictures: int
    classes: int
    prompts: str
    certified: float
    certified_loosely: float
    unchanged: float

    @classmethod
    def of(cls, spec: str, prompts: str, found: Certificate) -> Labels:
        """The record of a certificate that was asked with a classifier."""
        classes, certified, loosely, unchanged = (
            found.classes,
            found.certified,
            found.certified_loosely,
            found.unchanged,
        )
        if classes is None or certified is None or loosely is None or unchanged is None:
            raise ValueError("the certificate was made without a classifier; pass one to certify")
        return cls(spec, found.pictures, classes, prompts, certified, loosely, unchanged)

    @property
    def summary(self) -> str:
        """What they are by, in a few words."""
        return f"{self.classes} classes of {self.spec} on {self.pictures:,} pictures, prompts {self.prompts}"


@dataclass(frozen=True)
class Certified:
    """The certificate of one set of pictures.

    Attributes:
        spec: the data.
        protocol: split, pictures, pictures left out, the model before, what the labels are by.
        levels: of the quantiles below.
        tight: quantiles over pictures of the tight bound on any cosine's change.
        loose: the same of the paper's bound.
        labels: one a set of classes.
    """

    spec: str
    protocol: dict[str, Any]
    levels: tuple[float, ...]
    tight: tuple[float, ...]
    loose: tuple[float, ...]
    labels: tuple[Labels, ...] = field(default=())

    @classmethod
    def of(
        cls, spec: str, protocol: Mapping[str, Any], bounds: Certificate, labels: tuple[Labels, ...] = ()
    ) -> Certified:
        """The record of a certificate's bounds."""
        return cls(spec, dict(protocol), bounds.levels, bounds.tight, bounds.loose, labels)

    @property
    def summary(self) -> str:
        """The protocol in one line."""
        told = (f"{key.replace('_', ' ')}: {value}" for key, value in self.protocol.items())
        return f"drift on {self.spec}: " + "; ".join(told)

    @property
    def sentence(self) -> str:
        """What is certain, in one line."""
        at = dict(zip(self.levels, self.tight, strict=True))
        parts = [
            f"no text can see the cosine of a picture change by more than {at[0.5]:.3g} (median), {at[0.95]:.3g} "
            f"(95 %), {at[1.0]:.3g} (largest of {self.protocol['pictures']:,})"
        ]
        for found in self.labels:
            parts.append(
                f"on {found.spec} {100 * found.certified:.1f} % of zero-shot labels cannot have changed "
                f"({100 * found.unchanged:.1f} % did not)"
            )
        return "; ".join(parts)

    def bound_rows(self) -> list[list[str]]:
        """The quantiles as rows of text; the first row is the header."""
        heads = ["all" if level == 1 else f"{100 * level:g} %" for level in SHOWN]
        rows = [["share of the pictures", *heads]]
        for name, values in (("tight", self.tight), ("loose", self.loose)):
            at = dict(zip(self.levels, values, strict=True))
            rows.append([f"no cosine changes by more than ({name})", *(f"{at[level]:.4g}" for level in SHOWN)])
        return rows

    def label_rows(self) -> list[list[str]]:
        """The shares of labels as rows of text, in per cent; only a header where no classes are known."""
        rows = [["zero-shot labels", "cannot have changed", "by the loose bound", "did not change", "n"]]
        for found in self.labels:
            shares = (found.certified, found.certified_loosely, found.unchanged)
            rows.append([found.spec, *(f"{100 * share:.2f} %" for share in shares), f"{found.pictures:,}"])
        return rows

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "spec": self.spec,
            "protocol": self.protocol,
            "quantiles": {
                "levels": list(self.levels),
                "tight": list(self.tight),
                "loose": list(self.loose),
            },
            "labels": [asdict(found) for found in self.labels],
            "sentence": self.sentence,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Certified:
        """Reads what `to_dict` wrote."""
        levels, tight, loose = (tuple(map(float, stored["quantiles"][key])) for key in ("levels", "tight", "loose"))
        labels = tuple(Labels(**found) for found in stored["labels"])
        return cls(stored["spec"], dict(stored["protocol"]), levels, tight, loose, labels)
