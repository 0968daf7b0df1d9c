"""Where a tower's blocks are: the one table that `train: last:N`, LoRA's default targets and checkpointing read.

A block is what the library repeats along the depth: a transformer layer, or a stage of a convolutional network. Only
parameter names decide, so a network that is built like one of these is told as well; any other is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from modalign.errors import RecipeError
from modalign.models.dual_encoder import DualEncoder, TowerName

_ORDINARY_TAIL = r"norm|fc_norm|attn_pool|head|head_norm|norm_head|conv_head|bn2|final_conv|fc"


@dataclass(frozen=True)
class Layout:
    """How one kind of tower names its parameters.

    Attributes:
        block: matches a parameter inside a block; its first group is the block's name, its second the number.
        tail: matches what comes after the last block: final norms, pooling and projection.
    """

    block: re.Pattern[str]
    tail: re.Pattern[str]


def _layout(block: str, tail: str) -> Layout:
    return Layout(re.compile(block), re.compile(tail))


LAYOUTS = {
    "open_clip VisionTransformer": _layout(
        r"^(visual\.transformer\.resblocks\.(\d+))\.", r"^visual\.(ln_post\.|attn_pool\w*\.|proj$)"
    ),
    "open_clip text transformer": _layout(
        r"^((?:text\.)?transformer\.resblocks\.(\d+))\.", r"^(?:text\.)?(ln_final\.|text_projection)"
    ),
    "transformers text tower in open_clip": _layout(
        r"^(text\.transformer\.(?:\w+\.)*?(?:layer|layers|block)\.(\d+))\.",
        r"^text\.(?:proj\.|pooler\.|transformer\.(?:\w+\.)?(?:pooler|final_layer_norm|final_norm|norm)\.)",
    ),
    "open_clip ModifiedResNet (stages)": _layout(r"^(visual\.layer(\d))\.", r"^visual\.attnpool\."),
    "timm trunk (blocks or stages)": _layout(
        r"^(visual\.trunk\.(?:blocks|stages|layers)\.(\d+))\.",
        rf"^visual\.(?:head\.|trunk\.(?:{_ORDINARY_TAIL})\.)",
    ),
    "timm ResNet (stages)": _layout(
        r"^(visual\.trunk\.layer(\d))\.", r"^visual\.(?:head\.|trunk\.(?:attn_pool|head|fc)\.)"
    ),
    "transformers vision tower": _layout(
        r"^(vision_model\.encoder\.layers\.(\d+))\.",
        r"^(?:vision_model\.(?:post_layernorm|head)\.|visual_projection\.)",
    ),
    "transformers text tower": _layout(
        r"^(text_model\.encoder\.layers\.(\d+))\.", r"^(?:text_model\.(?:final_layer_norm|head)\.|text_projection\.)"
    ),
}


@dataclass(frozen=True)
class Blocks:
    """A tower's blocks.

    Attributes:
        names: the modules, first to last.
        tail: the parameters after the last block.
    """

    names: list[str]
    tail: list[str]

    def last(self, count: int, parameters: Iterable[str]) -> list[str]:
        """The parameters of the last `count` blocks and of everything after them, in the given order."""
        inside = tuple(f"{name}." for name in self.names[len(self.names) - count :])
        tail = set(self.tail)
        return [name for name in parameters if name in tail or name.startswith(inside)]


def find(model: DualEncoder, tower: TowerName) -> Blocks | None:
    """The blocks of one tower; None where the names tell none.

    Args:
        model: any adapter's.
        tower: which.
    """
    parameters = [name for name, _ in model.named_parameters(tower)]
    for layout in LAYOUTS.values():
        found = {m[1]: int(m[2]) for name in parameters if (m := layout.block.match(name))}
        if found:
            tail = [name for name in parameters if layout.tail.match(name)]
            return Blocks(sorted(found, key=lambda name: found[name]), tail)
    return None


def part_of_each(model: DualEncoder, tower: TowerName, parameters: Iterable[str]) -> dict[str, str]:
    """Each parameter's place in its tower: "image transformer.resblocks.3", "image" for what is in no block.

    Args:
        model: any adapter's.
        tower: which.
        parameters: some of the tower's, adapters inside a block included.
    """
    blocks = find(model, tower)
    names = blocks.names if blocks is not None else []
    inside = {name: next((block for block in names if name.startswith(f"{block}.")), "") for name in parameters}
    return {name: f"{tower} {block}".strip() for name, block in inside.items()}


def told(model: DualEncoder, tower: TowerName, wanted: str, instead: str) -> Blocks:
    """`find`, or an error that says what cannot be had.

    Args:
        model: any adapter's.
        tower: which.
        wanted: the setting, for the message ("train = 'last:2'").
        instead: what to set.

    Raises:
        RecipeError: the tower's blocks cannot be told.
    """
    blocks = find(model, tower)
    if blocks is None:
        raise RecipeError(
            f"{wanted}: the blocks of the {tower} tower of {model.spec} ({type(model.module).__name__}) cannot be "
            f"told from its parameter names; {instead}"
        )
    return blocks


def modules(model: DualEncoder, blocks: Blocks) -> list[nn.Module]:
    """The modules a tower's blocks are."""
    return [model.module.get_submodule(name) for name in blocks.names]
