"""A dual encoder small enough for float64 trajectories: two-layer towers with a separate projection."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from modalign.data.records import PairRow, Pairs
from modalign.models.dual_encoder import DualEncoder, TowerName


class Towers(nn.Module):
    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.visual = nn.ModuleDict({"hidden": nn.Linear(12, 10), "norm": nn.LayerNorm(10), "proj": nn.Linear(10, dim)})
        self.text = nn.ModuleDict(
            {"embed": nn.Embedding(64, 10), "hidden": nn.Linear(10, 10), "proj": nn.Linear(10, dim)}
        )
        for tower in (self.visual, self.text):
            tower["drop"] = nn.Dropout(dropout)


class ToyEncoder(DualEncoder):
    family = "toy"

    def __init__(self, dim: int = 6, seed: int = 0, dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            super().__init__(Towers(dim, dropout).to(dtype), f"toy:{seed}")
        self.preprocess = pixels_of
        self.image_calls = self.text_calls = 0

    def image_trunk(self, pixels: Tensor) -> Tensor:
        self.image_calls += len(pixels)
        visual = self.module.visual
        return visual["norm"](visual["drop"](torch.tanh(visual["hidden"](pixels.flatten(1)))))

    def project_image(self, hidden: Tensor) -> Tensor:
        return wide(self.module.visual["proj"](hidden))

    def text_trunk(self, tokens: Tensor) -> Tensor:
        self.text_calls += len(tokens)
        text = self.module.text
        return text["drop"](torch.tanh(text["hidden"](text["embed"](tokens).mean(1))))

    def project_text(self, hidden: Tensor) -> Tensor:
        return wide(self.module.text["proj"](hidden))

    def token_lengths(self, tokens: Tensor) -> Tensor:
        return torch.full((len(tokens),), tokens.shape[1])

    def tokenize(self, captions: list[str]) -> Tensor:
        return torch.tensor([[ord(c) % 64 for c in caption[:8].ljust(8)] for caption in captions])

    embed_dim = property(lambda self: self.module.visual["proj"].out_features)
    logit_scale = property(lambda self: 20.0)
    input_identity = property(lambda self: "toy")

    def tower_of(self, name: str) -> TowerName | None:
        return "image" if name.startswith("visual.") else "text"

    def projection_names(self, tower: TowerName) -> list[str]:
        prefix = "visual" if tower == "image" else "text"
        return [f"{prefix}.proj.weight", f"{prefix}.proj.bias"]

    def write(self, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file({k: v.contiguous() for k, v in self.module.state_dict().items()}, folder / "model.safetensors")


def pixels_of(image: object) -> Tensor:
    """A picture → 3×2×2 in [-1, 1]: its corners' colours."""
    import numpy as np

    array = np.asarray(image.resize((2, 2)), dtype=np.float32)
    return torch.from_numpy(array).permute(2, 0, 1) / 127.5 - 1


def wide(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()


def toy_pairs(folder: Path, n: int = 24, captions: int = 2, seed: int = 0) -> Pairs:
    """n real PNGs with several captions each; two rows share a picture and two share a caption."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        path = folder / f"{i:03d}.png"
        Image.fromarray(random.integers(0, 256, (2, 2, 3), dtype=np.uint8)).save(path)
        rows.append(PairRow(path, tuple(f"c{i}x{j} {i * 7 % 11}" for j in range(captions)), f"list:{i + 1}"))
    rows[1] = PairRow(rows[0].path, rows[1].captions, rows[1].where)
    rows[2] = PairRow(rows[2].path, rows[3].captions, rows[2].where)
    return Pairs("toy", tuple(rows), "")
