"""What a run did to the image features of the pictures it is judged on: the certificate, and how near the target is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from modalign.evaluation.certificate import Certified
from modalign.evaluation.certifying import certificate, drift_results
from modalign.evaluation.kinds import Encoded
from modalign.evaluation.suite import Suite
from modalign.evaluation.target_alignment import target_alignment
from modalign.objectives.kernels import AnyKernel
from modalign.tensor_files import write_tensors

BEFORE = "before.safetensors"


class Moved:
    """The features that the evaluations before and after of a run took, kept until both are there.

    Args:
        suite: what is judged.
        folder: the run's `evaluation/`, where the features before wait for a resume.
        model: the spec of the initial model.
        text_fixed: whether the text tower does not train, so that every text stays what it was.
        aligned: whether the run has a target that the image features may come nearer to.
    """

    def __init__(self, suite: Suite, folder: Path, model: str, *, text_fixed: bool, aligned: bool) -> None:
        self.suite, self.folder, self.model = suite, folder, model
        self.text_fixed, self.aligned = text_fixed, aligned
        self.before: Encoded | None = None
        self.after: Encoded | None = None

    @property
    def wanted(self) -> bool:
        """Whether anything here is asked for."""
        return self.text_fixed or self.aligned or bool(self.suite.drifts)

    def recall(self) -> bool:
        """Reads the features before that an earlier try of this run took; False where they are needed and not there."""
        if not self.wanted:
            return True
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            found = load_file(self.folder / BEFORE)
        except (OSError, SafetensorError):
            return False
        self.before = Encoded(found["image"], found["kept"], found["text"])
        return True

    def keep(self, name: str, encoded: Encoded) -> None:
        """Takes what the evaluation "before" or "after" embedded."""
        if not self.wanted:
            return
        if name == "after":
            self.after = encoded
            return
        self.before = encoded
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{BEFORE}.tmp"
        write_tensors(temporary, {"image": encoded.image, "kept": encoded.kept, "text": encoded.text})
        temporary.replace(self.folder / BEFORE)

    def drift(self) -> list[Certified]:
        """One certificate a drift task, once both evaluations are there."""
        if self.before is None or self.after is None:
            return []
        text = self.before.text if self.text_fixed else None
        return drift_results(self.suite, self.before, self.after, self.model, text)

    def record(
        self,
        target: Callable[[Tensor], Tensor],
        kernels: Callable[[Tensor], tuple[AnyKernel, AnyKernel] | None],
    ) -> dict[str, Any]:
        """What evaluation.json says of the picture side.

        Args:
            target: K numbers of the suite's pictures → K×d_t, raw, of the run's target; asked where it has one.
            kernels: those of the method, given the target's features.

        Returns:
            "certificate" over all pictures, None where the text tower trains, and "target_alignment", None without a
            target.
        """
        record: dict[str, Any] = {"certificate": None, "target_alignment": None}
        if self.before is None or self.after is None:
            return record
        if self.text_fixed:
            found = certificate(self.suite, self.before, self.after, self.model, self.before.text)
            record["certificate"] = found.to_dict()
        if self.aligned:
            rows = [side.rows(len(self.suite.paths)) for side in (self.before, self.after)]
            kept = ((rows[0] >= 0) & (rows[1] >= 0)).nonzero().flatten()
            seen = target(kept)
            first, last = self.before.image[rows[0][kept]], self.after.image[rows[1][kept]]
            record["target_alignment"] = target_alignment(first, last, seen, kernels(seen))
        return record
