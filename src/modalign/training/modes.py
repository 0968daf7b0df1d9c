"""Which modules leave `eval()` while a tower trains: dropout by choice, BatchNorm's batch statistics by choice.

Everything else stays in `eval()`, and so do these outside of a training step: validation, evaluation and the teacher
never see a mask. A chunk that is embedded twice must meet the same masks twice; they are therefore drawn from a
stream that is seeded by (seed, step, tower, first global row of the chunk), inside `fork_rng`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from modalign.errors import RecipeError
from modalign.methods.drawing import stable_seed
from modalign.models.dual_encoder import DualEncoder, TowerName
from modalign.recipe import Recipe

RATES = ("prob", "drop_prob", "dropout", "dropout_p", "attention_dropout", "attn_drop", "attn_drop_p")
"""What libraries call a dropout rate outside of nn.Dropout: PatchDropout, DropPath, attention."""


@dataclass
class Modes:
    """The modules that are in `train()` during a step.

    Attributes:
        modules: each alone, never its children.
        masks: whether any of them draws random numbers.
        statistics: running statistics that a step changes, by name.
    """

    modules: list[nn.Module] = field(default_factory=list)
    masks: bool = False
    statistics: dict[str, torch.Tensor] = field(default_factory=dict)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Training behaviour for the length of one step, its backward pass included."""
        for module in self.modules:
            module.training = True
        try:
            yield
        finally:
            for module in self.modules:
                module.training = False


def choose(model: DualEncoder, trained: dict[TowerName, dict[str, nn.Parameter]], recipe: Recipe) -> Modes:
    """The modules that `dropout: on` and `norm: batch` switch.

    Args:
        model: before LoRA's adapters are in; their dropout joins when they are.
        trained: tower → trained parameters by name.
        recipe: `dropout` and `norm`.

    Raises:
        RecipeError: a choice that would change nothing.
    """
    modes = Modes()
    if recipe.dropout == "on":
        modes.masks = True
        modes.modules += [module for name, module in _inside(model, trained) if drops(module)]
        if not modes.modules and not (recipe.lora is not None and recipe.lora.dropout > 0):
            raise RecipeError(
                f"dropout = 'on': no module of the {' and '.join(trained)} tower of {model.spec} has a dropout rate "
                "above 0; set dropout: off, or the rate in the model's configuration"
            )
    if recipe.norm == "batch":
        names = {name for group in trained.values() for name in group}
        for name, module in _inside(model, trained):
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and f"{name}.weight" in names:
                modes.modules.append(module)
                modes.statistics |= {f"{name}.{key}": buffer for key, buffer in module.named_buffers(recurse=False)}
        if not modes.statistics:
            raise RecipeError(
                f"norm = 'batch': no BatchNorm layer of {model.spec} trains with train = {recipe.train!r}; "
                "set norm: frozen, or train a tower that has one"
            )
    return modes


def drops(module: nn.Module) -> bool:
    """Whether a module, by itself, drops something at random in `train()`.

    Attention layers that drop their weights functionally hold the rate in a child (`attn_drop`, `dropout`) but look
    at their own mode.
    """
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    found = [getattr(module, name, 0.0) for name in RATES]
    rates = [value.p if isinstance(value, nn.Dropout) else value for value in found]
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


@contextmanager
def masks(seed: int, step: int, tower: TowerName, row: int, device: torch.device) -> Iterator[None]:
    """The random stream of one chunk's dropout; the caller's own stream is left as it was.

    Args:
        seed: the run's.
        step: counted from 0.
        tower: which.
        row: the chunk's first row in the global batch.
        device: where the tower computes.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(stable_seed(seed, "dropout", step, tower, row))
        yield


def _inside(model: DualEncoder, towers: dict[TowerName, dict[str, nn.Parameter]]) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.module.named_modules():
        if name and model.tower_of(f"{name}.weight") in towers:  # towers are told by prefixes of parameter names
            yield name, module
