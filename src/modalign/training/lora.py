"""LoRA adapters through peft, also on open_clip's fused attention, merged into the library's own weights at the end.

An adapter makes a linear layer compute x·Wᵀ + (alpha / rank)·(x·Aᵀ)·Bᵀ with B = 0 at first, so training begins at the
initial model. `nn.MultiheadAttention` keeps q, k and v in one bare parameter. peft adapts it by adding B·A to that
parameter before every call and subtracting it afterwards, which rounds the frozen weights a little further each time;
here it is written out as two linear layers around the same attention instead, on the same parameters, for as long as
the adapters are in place.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from modalign.errors import RecipeError
from modalign.models.dual_encoder import DualEncoder, TowerName
from modalign.recipe import LoraRecipe
from modalign.tensor_files import write_tensors
from modalign.training import blocks

ATTENTION = re.compile(r"(?i)\.(?:self_?)?(?:attn|attention)\.")
"""Inside a block: the query, key, value and output layers in open_clip, timm and transformers."""


class SplitAttention(nn.Module):
    """The `nn.MultiheadAttention` of open_clip's blocks, its projections as linear layers on the same parameters.

    Args:
        fused: the library's module, batch first or not.
    """

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads, self.batch_first, self.dropout = fused.num_heads, fused.batch_first, float(fused.dropout)
        self.in_proj = _linear(fused.in_proj_weight, fused.in_proj_bias)
        self.out_proj = _linear(fused.out_proj.weight, fused.out_proj.bias)
        self.training = False

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool, attn_mask: Tensor | None
    ) -> tuple[Tensor, None]:
        """Self-attention as the block calls it: three times one B×L×w (L×B×w) input → its shape, and no weights."""
        assert key is value is query
        assert not need_weights
        hidden = query if self.batch_first else query.transpose(0, 1)
        rows, length, width = hidden.shape
        heads = self.in_proj(hidden).view(rows, length, 3, self.heads, width // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        if attn_mask is not None and attn_mask.dim() == 3:
            attn_mask = attn_mask.view(rows, self.heads, length, length)
        seen = scaled_dot_product_attention(q, k, v, attn_mask, dropout_p=self.dropout if self.training else 0.0)
        hidden = self.out_proj(seen.transpose(1, 2).reshape(rows, length, width))
        return hidden if self.batch_first else hidden.transpose(0, 1), None


class Adapters:
    """The adapters of one run: chosen by name, put in, merged.

    Args:
        model: the initial model, in its library's own layout.
        towers: which towers train.
        recipe: rank, alpha, dropout, target.

    Attributes:
        targets: tower → names of the linear layers that get an adapter.
        weights: the library's parameters that merging changes, by name.

    Raises:
        RecipeError: the target matches nothing, or a tower has no layers that it could mean by default.
    """

    def __init__(self, model: DualEncoder, towers: list[TowerName], recipe: LoraRecipe) -> None:
        self.model, self.recipe = model, recipe
        self.tensors: dict[str, Tensor] = {}
        self.fused = dict(_fused(model.module))
        self.possible = {tower: self._linear_layers(tower) for tower in towers}
        if recipe.target is None:
            self.targets = {tower: self._attention(tower) for tower in towers}
        else:
            chosen = {t: [n for n in names if re.search(recipe.target, n)] for t, names in self.possible.items()}
            self.targets = {tower: names for tower, names in chosen.items() if names}
            if not self.targets:
                some = next((name for names in self.possible.values() for name in names), "none")
                raise RecipeError(
                    f"lora.target = {recipe.target!r} matches no linear layer of the towers that train (one is "
                    f"{some!r}); correct the expression, or leave it out for the attention of every block"
                )
        self.weights = {name: model.module.get_parameter(name) for name in map(self._weight, self._all)}
        self._config: Any = None
        called = self._called(self._all)
        if ignored := [name for name in self._all if name not in called]:
            raise RecipeError(
                f"train = 'lora': {ignored[0]} of {model.spec} is not called as a layer, so an adapter around it would "
                f"be ignored ({len(ignored)} such); {self._instead}"
            )

    @property
    def _all(self) -> list[str]:
        return [name for names in self.targets.values() for name in names]

    @property
    def names(self) -> dict[TowerName, list[str]]:
        """Tower → the names the adapters' parameters will have."""
        pair = ("lora_A.default.weight", "lora_B.default.weight")
        return {tower: [f"{name}.{part}" for name in names for part in pair] for tower, names in self.targets.items()}

    @property
    def all_names(self) -> list[str]:
        """`names`, of both towers."""
        return [name for names in self.names.values() for name in names]

    def _linear_layers(self, tower: TowerName) -> list[str]:
        """A tower's linear layers, those of fused attention as its two."""
        names: list[str] = []
        for name, module in self.model.module.named_modules():
            if name and self.model.tower_of(f"{name}.weight") == tower:
                if name in self.fused:  # its out_proj is among its children
                    names.append(f"{name}.in_proj")
                elif isinstance(module, nn.Linear):
                    names.append(name)
        return names

    def _attention(self, tower: TowerName) -> list[str]:
        found = blocks.find(self.model, tower)
        inside = found.names if found is not None else []
        possible = self.possible[tower]
        chosen = [n for n in possible for b in inside if n.startswith(f"{b}.") and ATTENTION.search(n[len(b) :])]
        if chosen:
            return chosen
        if found is None:
            blocks.told(self.model, tower, "train = 'lora'", self._instead)
        raise RecipeError(
            f"train = 'lora': the blocks of the {tower} tower of {self.model.spec} hold no attention that adapters "
            f"fit; {self._instead}"
        )

    @property
    def _instead(self) -> str:
        """What to set where the default does not do: an expression made of this model's own layers."""
        endings: dict[str, set[str]] = {}
        called = self._called([name for names in self.possible.values() for name in names])
        for names in self.possible.values():
            usable = [name for name in names if name in called]
            attention = [name for name in usable if ATTENTION.search(f".{name}")]
            for name in attention or usable:
                parent, _, last = name.rpartition(".")
                endings.setdefault(parent.rpartition(".")[2], set()).add(last)
        groups = [rf"{re.escape(parent)}\.({'|'.join(sorted(last))})$" for parent, last in sorted(endings.items())]
        example = f", such as lora.target: '{'|'.join(groups)}'" if groups else ""
        return f"name the layers that get an adapter{example} (a tower without a match stays as it is)"

    def _weight(self, name: str) -> str:
        """The library's name of the parameter behind a target."""
        parent, _, last = name.rpartition(".")
        return f"{parent}.in_proj_weight" if parent in self.fused and last == "in_proj" else f"{name}.weight"

    @torch.no_grad()
    def _called(self, names: list[str]) -> set[str]:
        """Those that one picture and one caption pass through: a layer whose weights are only read ignores an adapter.

        Fused attention counts: its projections become layers.
        """
        from PIL import Image

        model, called = self.model, {name for name in names if name.rpartition(".")[0] in self.fused}
        layers = {name: model.module.get_submodule(name) for name in names if name not in called}
        handles = [m.register_forward_hook(lambda *_, name=n: called.add(name)) for n, m in layers.items()]
        try:
            if "image" in self.possible:
                pixels = model.preprocess(Image.new("RGB", (64, 64)))[None]
                model.encode_image(pixels.to(model.device, model.dtype))
            if "text" in self.possible:
                model.encode_text(model.tokenize(["a"]).to(model.device))
        finally:
            for handle in handles:
                handle.remove()
        return called

    # ---- in and out -----------------------------------------------------------------------------------------

    def put_in(self, seed: int) -> dict[str, nn.Parameter]:
        """Puts the adapters into the model; returns their parameters by name.

        Args:
            seed: decides A, drawn on the CPU, alike on every process; B is 0.
        """
        from peft import LoraConfig, inject_adapter_in_model

        network = self.model.module
        for name in self._split:
            _set(network, name, SplitAttention(self.fused[name]))
        self._config = LoraConfig(
            r=self.recipe.rank,
            lora_alpha=self.recipe.alpha,
            lora_dropout=self.recipe.dropout,
            target_modules="|".join(re.escape(name) for name in self._all),  # whole names: a list would match endings
            base_model_name_or_path=self.model.spec,
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            inject_adapter_in_model(self._config, network)
        network.eval().requires_grad_(False)
        parameters = dict(network.named_parameters())
        return {name: parameters[name] for name in self.all_names}

    @property
    def dropouts(self) -> list[nn.Module]:
        """The adapters' own dropout layers, once they are in."""
        inside = (self.model.module.get_submodule(f"{name}.lora_dropout") for name in self._all)
        return [layer for held in inside for layer in held.modules() if isinstance(layer, nn.Dropout)]

    @property
    def _split(self) -> list[str]:
        return [name for name in self.fused if {f"{name}.in_proj", f"{name}.out_proj"} & set(self._all)]

    def merge(self) -> None:
        """Adds (alpha / rank)·B·A to the library's weights and takes the adapters out; the layout is as before."""
        network = self.model.module
        self.tensors = dict(self._saved())
        for name in self._all:
            layer: Any = network.get_submodule(name)
            layer.merge()
            _set(network, name, layer.get_base_layer())
        for name in self._split:
            _set(network, name, self.fused[name])
        network.eval()

    def _saved(self) -> Iterator[tuple[str, Tensor]]:
        parameters = dict(self.model.module.named_parameters())
        for name in self.all_names:
            yield f"base_model.model.{name.replace('.default.', '.')}", parameters[name].detach().cpu().clone()

    def write(self, folder: Path) -> None:
        """Writes what was merged in peft's format: adapter_config.json and adapter_model.safetensors.

        Args:
            folder: created where it is missing.
        """
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / "adapter_model.safetensors", self.tensors)
        self._config.save_pretrained(folder)


def _linear(weight: Any, bias: Any) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = weight
    if bias is not None:
        layer.bias = bias
    return layer


def _fused(network: nn.Module) -> Iterator[tuple[str, nn.MultiheadAttention]]:
    """The self-attention of open_clip's residual blocks (poolers and cross-attention have other inputs)."""
    for name, block in network.named_modules():
        attention = getattr(block, "attn", None)
        own = type(block).__name__ == "ResidualAttentionBlock" and not hasattr(block, "ln_1_kv")
        if own and isinstance(attention, nn.MultiheadAttention):
            yield f"{name}.attn", attention


def _set(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, module)
