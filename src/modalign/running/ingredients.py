"""What a run is made of: read and checked before anything is computed."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from modalign import methods, models
from modalign.data import mixing, order
from modalign.data.classes import classes_of
from modalign.data.pictures import files_identity
from modalign.data.sources import Pairs
from modalign.errors import RecipeError
from modalign.evaluation import suite
from modalign.evaluation.suite import Suite
from modalign.methods import Method
from modalign.models import DualEncoder, VisionEncoder
from modalign.models.vectors import StoredVectors, VectorModel
from modalign.models.vision_transform import seen_by
from modalign.recipe import Recipe
from modalign.training import bare
from modalign.training.precision import autocast
from modalign.training.scope import Scope, choose


@dataclass
class Ingredients:
    """Everything that a run reads.

    Attributes:
        place: the device, where model and target are.
        precision: the autocast context of the towers.
        model: the initial model, a copy that this run may train.
        method: with every setting of the recipe.
        pairs: what is trained on.
        held: what is held out of it, or None.
        scope: what trains, and which stored signals follow.
        target: the vision encoder that is aligned with, seeing what the model sees, or None.
        vectors: in its place the target's bare vectors, where the model is bare vectors too, or None.
        suite: the recipe's tasks, or None where it names none.
    """

    place: torch.device
    precision: AbstractContextManager[object]
    model: DualEncoder
    method: Method
    pairs: Pairs
    held: Pairs | None
    scope: Scope
    target: VisionEncoder | None
    vectors: StoredVectors | None
    suite: Suite | None

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the run beside its recipe: a hash of each thing that may change on the disk meanwhile."""
        found: dict[str, Any] = {
            "model": self.model.fingerprint,
            "data": self.pairs.fingerprint,
            "pictures": files_identity(self.pairs.paths),
        }
        for aligned in (self.target, self.vectors):
            if aligned is not None:
                found["target"] = aligned.fingerprint
        if self.held is not None:
            found["held-out pictures"] = files_identity(self.held.paths)
        if self.suite is not None:
            found["evaluation data"] = self.suite.identity
        return found


def gather(
    recipe: Recipe,
    place: torch.device,
    world: int,
    *,
    model: DualEncoder | None = None,
    pairs: Pairs | None = None,
    target: VisionEncoder | None = None,
) -> Ingredients:
    """Reads model, method, pairs, target and tasks; everything a user can get wrong fails here.

    Args:
        recipe: every setting.
        place: the device.
        world: how many processes share a batch.
        model: the initial model where it is loaded already; it is copied.
        pairs: the training pairs where they are read already.
        target: the vision encoder where it is loaded already.

    Raises:
        ModalignError: any of its kinds, in one line that says what to do.
    """
    with torch.random.fork_rng(devices=[]):  # a method's own parameters start alike on every process
        torch.manual_seed(recipe.seed)
        method = methods.from_config(recipe.method)
    precision = autocast(recipe.precision, place)
    model = model.frozen_copy() if model is not None else models.load(recipe.model)
    model.to(place)
    vectors: StoredVectors | None = None
    if isinstance(model, VectorModel):
        vectors = bare.read_target(model, method, recipe)
        pairs = model.vectors.as_pairs() if model.vectors is not None else None
    pairs, held = _training_pairs(recipe, method, pairs)
    scope = choose(model, method, recipe, world)
    if recipe.target and vectors is None:
        found = target if target is not None else models.load_vision(recipe.target)
        target = seen_by(found, model, recipe.target_preprocess).to(place)
    else:
        target = None
    if method.towers:  # else there is no step
        _check_batches(recipe, method, pairs, world)
    asked = recipe.evaluation
    tasks = None
    if asked.tasks:
        tasks = suite.prepare(asked.tasks, max_bad=recipe.data.max_bad, **asked.reading)
        tasks.refuse_answered()
    elif named := [name for name, value in asked.reading.items() if name.endswith("_column") and value is not None]:
        raise RecipeError(f"evaluation.{named[0]}: the recipe names no evaluation.tasks that read it; leave it out")
    for task in tasks.tasks if tasks is not None and not method.towers else ():
        if task.needs_model:
            raise RecipeError(
                f"evaluation.tasks: {task.name} reads more of the model than features, and method {method.name!r} "
                "changes features alone; leave the task out"
            )
    return Ingredients(place, precision, model, method, pairs, held, scope, target, vectors, tasks)


def _training_pairs(recipe: Recipe, method: Method, pairs: Pairs | None) -> tuple[Pairs, Pairs | None]:
    """What is trained on, and what is held out of it."""
    data = recipe.data
    if pairs is not None and data.stratify:
        raise RecipeError("data.stratify reads the classes of a spec, and the pairs are read already; pass their spec")
    if pairs is None:
        pairs = mixing.read(
            data.train, image_column=data.image_column, text_column=data.text_column, max_bad=data.max_bad
        )
    if not pairs.captions and ("text" in method.towers or "frozen_text" in method.needs):
        raise RecipeError(
            f"method {method.name!r} reads captions and {pairs.spec} has none; name pairs, or use a method "
            "that trains the image tower alone, such as kuea"
        )
    held: Pairs | None = None
    if data.validation > 0:
        pairs, held = pairs.split_off(data.validation, recipe.seed)
    classes: list[int] | None = None
    if data.stratify:
        columns = {"image_column": data.image_column, "label_column": data.label_column}
        classes = classes_of(pairs, data.train, **columns)
    return pairs.subset(fraction=data.fraction, limit=data.limit, seed=recipe.seed, classes=classes), held


def _check_batches(recipe: Recipe, method: Method, pairs: Pairs, world: int) -> None:
    """Refuses rows that do not make a batch for every process, for the method, or with every source's share."""
    size, drop_last = recipe.data.batch_size, recipe.data.drop_last
    order.steps_per_epoch(len(pairs), size, drop_last)
    if pairs.weights:  # the first batch tells whether every source has its share
        order.mixed_batch(recipe.seed, 0, pairs.members, pairs.weights, size, drop_last)
    last = 0 if drop_last else len(pairs) % size
    for fewest, who in ((world, f"the {world} processes"), (method.fewest_rows, f"method {method.name!r} can take")):
        if 0 < last < fewest:
            rows = "1 row" if last == 1 else f"{last} rows"
            raise RecipeError(
                f"the last batch of {rows} is smaller than {who}; set data.drop_last=true or another data.batch_size"
            )
