"""Several methods trained as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from modalign.embeddings import Embeddings
from modalign.methods.base import Diagnosis, Method
from modalign.methods.drawing import stable_seed
from modalign.objectives.kernels import AnyKernel


@dataclass
class Combine(Method):
    """Sums the terms of several methods over the same batches.

    A term keeps its name; where two methods have a term of one name, each is prefixed with its method's
    ("clip-refine.contrastive", and "rafa#2.rafa" for the second method called rafa). The first method draws the
    same random numbers as it would alone, each other one its own.

    Args:
        methods: at least one; their weights stay theirs.
    """

    name: ClassVar[str] = "combine"

    methods: Sequence[Method]

    def __post_init__(self) -> None:
        if not self.methods:
            raise ValueError("methods is empty; combine at least one method")
        self.needs_logit_bias = any(method.needs_logit_bias for method in self.methods)
        self.fewest_rows = max(method.fewest_rows for method in self.methods)
        self.weight_anchor = sum(method.weight_anchor for method in self.methods)
        self.towers = frozenset.intersection(*(method.towers for method in self.methods))
        if not self.towers:
            names = ", ".join(method.name for method in self.methods)
            raise ValueError(f"methods {names} share no tower that all of them can train; combine others")
        paced = [method for method in self.methods if method.curriculum is not None]
        if len(paced) > 1:
            names = ", ".join(method.name for method in paced)
            raise ValueError(f"methods {names} are each on a curriculum of their own; combine at most one such method")
        self.curriculum = paced[0].curriculum if paced else None

    @property
    def needs(self) -> frozenset[str]:
        """Whatever any of the methods needs."""
        return frozenset().union(*(method.needs for method in self.methods))

    @property
    def needs_fit(self) -> bool:
        """Whether any of the methods is to be fitted."""
        return any(method.needs_fit for method in self.methods)

    def fit(self, features: Mapping[str, Tensor]) -> None:
        """Fits those that are to be fitted."""
        for method in self.methods:
            if method.needs_fit:
                method.fit(features)

    def effective_logit_scale(self, embeddings: Embeddings) -> float | None:
        """That of the first method that distils."""
        for method in self.methods:
            scale = method.effective_logit_scale(embeddings)
            if scale is not None:
                return scale
        return None

    def diagnose(self, embeddings: Embeddings) -> Diagnosis:
        """Everything the methods say; of two values of one name, the first method's."""
        found = [method.diagnose(embeddings) for method in self.methods]
        values = {name: value for diagnosis in reversed(found) for name, value in diagnosis.values.items()}
        return Diagnosis(values, tuple(dict.fromkeys(w for diagnosis in found for w in diagnosis.warnings)))

    def draw(self, seed: int, step: int, rows: int, dim: int) -> dict[str, Tensor]:
        """Every method's draws, under "<position>.<name>"."""
        drawn: dict[str, Tensor] = {}
        for position, method in enumerate(self.methods):
            own_seed = stable_seed(seed, "combine", position) if position else seed
            for name, tensor in method.draw(own_seed, step, rows, dim).items():
                drawn[f"{position}.{name}"] = tensor
        return drawn

    def terms(self, embeddings: Embeddings, progress: float) -> dict[str, Tensor]:
        """Every method's terms."""
        found: list[tuple[str, str, Tensor]] = []
        for position, method in enumerate(self.methods):
            for name, term in method.terms(_drawn_for(position, embeddings), progress).items():
                found.append((self._label(position), name, term))
        uses = Counter(name for _, name, _ in found)
        return {name if uses[name] == 1 else f"{label}.{name}": term for label, name, term in found}

    def parts(self, embeddings: Embeddings, progress: float) -> tuple[Tensor | None, Tensor | None]:
        """The aligning loss of the method on a curriculum against everything else."""
        base: list[Tensor] = []
        aligning: Tensor | None = None
        for position, method in enumerate(self.methods):
            record = _drawn_for(position, embeddings)
            if method.curriculum is None:
                base += method.terms(record, progress).values()
                continue
            own, aligning = method.parts(record, progress)
            base += [own] if own is not None else []
        return torch.stack(base).sum() if base else None, aligning

    def _label(self, position: int) -> str:
        name = self.methods[position].name
        before = sum(method.name == name for method in self.methods[:position])
        return f"{name}#{before + 1}" if before else name

    def kernels(self, target: Tensor) -> tuple[AnyKernel, AnyKernel] | None:
        """Those of the first method that aligns kernels."""
        return next((pair for method in self.methods if (pair := method.kernels(target)) is not None), None)

    def module(self) -> nn.Module | None:
        """The methods' modules, in order."""
        modules = [module for method in self.methods if (module := method.module()) is not None]
        return nn.ModuleList(modules) if modules else None


def _drawn_for(position: int, embeddings: Embeddings) -> Embeddings:
    """The record with one method's draws under their own names."""
    prefix = f"{position}."
    draws = {key[len(prefix) :]: value for key, value in embeddings.draws.items() if key.startswith(prefix)}
    return replace(embeddings, draws=draws)
