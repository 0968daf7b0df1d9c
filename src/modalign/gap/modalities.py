"""The gaps between more than two modalities: one report a pair of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modalign.gap.report import GROUPS, GapReport

FORMAT = "modalign.gap-matrix/1"


@dataclass(frozen=True)
class GapMatrix:
    """The gap of every pair of modalities on the same rows.

    In the report of (a, b), a stands where measures say image and b where they say text.

    Attributes:
        reports: (a, b) → report, each unordered pair once, in the order the modalities were given.
    """

    reports: Mapping[tuple[str, str], GapReport]

    def __getitem__(self, pair: tuple[str, str]) -> GapReport:
        """The report of two modalities, in the order they were given."""
        return self.reports[pair]

    @property
    def modalities(self) -> list[str]:
        """The names, in the order they were given."""
        return list(dict.fromkeys(name for pair in self.reports for name in pair))

    def matrix(self, measure: str) -> dict[str, dict[str, float]]:
        """One measure as a symmetric table: `matrix("centroid_gap")["image"]["audio"]`; 0 on its diagonal.

        Args:
            measure: one of those that do not depend on which modality comes first, and are 0 between equals.
        """
        names = self.modalities
        found = {name: dict.fromkeys(names, 0.0) for name in names}
        for (first, second), report in self.reports.items():
            found[first][second] = found[second][first] = report.measures[measure].value
        return found

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; pairs are written `a|b`."""
        reports = {"|".join(pair): report.to_dict() for pair, report in self.reports.items()}
        return {"format": FORMAT, "modalities": self.modalities, "reports": reports}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> GapMatrix:
        """Reads what `to_dict` wrote."""
        names = stored["modalities"]
        pairs = [(first, second) for place, first in enumerate(names) for second in names[place + 1 :]]
        return cls({pair: GapReport.from_dict(stored["reports"]["|".join(pair)]) for pair in pairs})

    def to_table(self) -> list[list[str]]:
        """Rows of text: the main measures, a column for each pair of modalities; the first row is the header."""
        rows = [["measure", *(f"{first} – {second}" for first, second in self.reports)]]
        for name in next(iter(GROUPS.values())):
            values = (report.measures[name].value for report in self.reports.values())
            rows.append([name.replace("_", " "), *(f"{value:.4g}" if value == value else "–" for value in values)])
        return rows

    def table(self) -> str:
        """The table as aligned plain text, the protocol below it."""
        rows = self.to_table()
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, next(iter(self.reports.values())).protocol])
