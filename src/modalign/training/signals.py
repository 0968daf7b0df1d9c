"""What the towers and the frozen networks hand to the embedding boundary, batch by batch.

A side is a tower in training with this process's rows: pixels and tokens, or stored trunk outputs. A signal is a
feature that needs no gradient: looked up where it is stored, asked of the teacher where it is live.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from modalign import features
from modalign.data.feature_store import Rows
from modalign.embeddings import Embeddings
from modalign.methods.base import Method
from modalign.models.dual_encoder import DualEncoder, TowerName
from modalign.models.vision import VisionEncoder
from modalign.recipe import Recipe
from modalign.training import boundary, modes
from modalign.training.distributed import Processes
from modalign.training.inputs import Batch, TrainingSet
from modalign.training.precision import autocast
from modalign.training.scope import Scope, SignalName


@dataclass
class Signals:
    """The left half of every step.

    Args:
        model: the model in training, at its initial weights and in its library's own layout.
        method: what it reads and draws.
        scope: what trains, what is stored, what is live.
        data: the training rows.
        recipe: precision, chunk, seed, workers.
        processes: this process's place.
        target: the vision encoder, where the method reads its features.
    """

    model: DualEncoder
    method: Method
    scope: Scope
    data: TrainingSet
    recipe: Recipe
    processes: Processes
    target: VisionEncoder | None = None

    def __post_init__(self) -> None:
        self.device = self.model.device
        self.teacher = self.model.frozen_copy() if set(self.scope.live) - {"target"} else None

    def sides(self, batch: Batch) -> dict[boundary.SideName, boundary.Side]:
        """The trained towers with their own rows: pixels and tokens, or stored trunk outputs."""
        sides: dict[boundary.SideName, boundary.Side] = {}
        model, rows, captions = self.model, batch.rows[batch.own], batch.captions[batch.own]
        for tower, parameters in self.scope.parameters.items():
            if self.scope.projection:
                stored = self.data.trunk[tower][rows if tower == "image" else captions]
                project = model.project_image if tower == "image" else model.project_text
                sides[tower] = boundary.Side(self._here(project), parameters, stored)
            else:
                masks = self._masks(tower, batch.step) if self.scope.modes.masks else None
                inputs = self._own_inputs(tower, batch)
                sides[tower] = boundary.Side(self._encode(model, tower), parameters, inputs, masks)
        return sides

    def embeddings(self, data: TrainingSet, batch: Batch, present: Mapping[str, Tensor]) -> Embeddings:
        """Everything of a global batch that is known without the trained towers.

        Args:
            data: training or validation rows.
            batch: which of them.
            present: features of the present model that need no gradient, by tower.
        """
        frozen = {tower: self.stored(rows, tower, batch) for tower, rows in data.features.items()}
        if data is self.data:
            for tower in self.scope.live:  # in the same order on every process: each gather meets its own
                frozen[tower] = self.processes.gather(self._ask_frozen(tower, batch))
        for tower in self.scope.reads:
            if tower not in self.scope.parameters and tower not in present:
                present = {**present, tower: frozen[tower]}
        return Embeddings(
            image=present.get("image"),
            text=present.get("text"),
            frozen_image=frozen.get("image"),
            frozen_text=frozen.get("text"),
            target=frozen.get("target"),
            image_ids=data.image_ids[batch.rows].to(self.device),
            caption_ids=data.caption_ids[batch.captions].to(self.device) if data.captions else None,
            logit_scale=self.model.logit_scale,
            logit_bias=self.model.logit_bias,
            draws=self._draw(batch.step, len(batch.rows)),
        )

    def stored(self, rows: Tensor | Rows, tower: str, batch: Batch) -> Tensor:
        """The batch's rows of stored features, on the device."""
        return rows[batch.captions if tower == "text" else batch.rows].to(self.device)

    def _draw(self, step: int, rows: int) -> dict[str, Tensor]:
        drawn = self.method.draw(self.recipe.seed, step, rows, self.model.embed_dim)
        return {name: tensor.to(self.device) for name, tensor in drawn.items()}

    @torch.no_grad()
    def _ask_frozen(self, name: SignalName, batch: Batch) -> Tensor:
        """The initial model's or the target's features of the own rows (validation rows come with stored ones)."""
        if name == "target":
            assert self.target is not None
            assert batch.target_pixels is not None
            encode, inputs = self._here(self.target.encode), batch.target_pixels
        else:
            assert self.teacher is not None
            encode, inputs = self._encode(self.teacher, name), self._own_inputs(name, batch)
        with self.precision():
            return torch.cat([encode(part) for part in inputs.split(self.recipe.chunk or max(1, len(inputs)))])

    def _masks(self, tower: TowerName, step: int) -> Callable[[int], AbstractContextManager[object]]:
        return lambda row: modes.masks(self.recipe.seed, step, tower, row, self.device)

    def _encode(self, model: DualEncoder, tower: TowerName) -> Callable[[Tensor], Tensor]:
        return self._here(model.encode_image if tower == "image" else model.encode_text)

    def _here(self, run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Moves each chunk to the device when its turn comes, never the whole batch."""

        def moved(part: Tensor) -> Tensor:
            return run(part.to(self.device, self.model.dtype if part.is_floating_point() else None))

        return moved

    def _own_inputs(self, tower: TowerName, batch: Batch) -> Tensor:
        if tower == "image":
            assert batch.pixels is not None
            return batch.pixels
        return self.model.tokenize([self.data.captions[i] for i in batch.captions[batch.own].tolist()])

    @property
    def reads_pixels(self) -> bool:
        """Whether any network needs decoded pictures at every step."""
        trained = "image" in self.scope.parameters and not self.scope.projection
        return trained or "image" in self.scope.live or "target" in self.scope.live

    def precision(self) -> AbstractContextManager[object]:
        """The towers' autocast context."""
        return autocast(self.recipe.precision, self.device)

    @torch.no_grad()
    def present(self, held: TrainingSet) -> dict[str, Tensor | Rows]:
        """Features of the present model on other rows: N×d for pictures, M×d for captions, on CPU."""
        present: dict[str, Tensor | Rows] = {}
        for tower in self.scope.reads:
            if tower in held.trunk:
                present[tower] = features.project(self.model, tower, held.trunk[tower], precision=self.precision())
            elif tower not in self.scope.parameters and tower in held.features:
                present[tower] = held.features[tower]
            elif tower == "image":
                wheres = [row.where for row in held.pairs.rows]
                present[tower] = features.image_features(
                    self.model,
                    held.pairs.paths,
                    wheres,
                    batch_size=self.recipe.evaluation.batch_size,
                    workers=self.recipe.data.workers,
                    precision=self.precision(),
                ).features
            else:
                present[tower] = features.text_features(
                    self.model,
                    held.captions,
                    batch_size=self.recipe.evaluation.batch_size,
                    precision=self.precision(),
                )
        return present
