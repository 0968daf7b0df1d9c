"""Image networks without a text tower: what a vision-language model is compared with, or aligned to."""

from __future__ import annotations

import copy
import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from modalign.errors import ModelError, first_line
from modalign.models.folder import RECORD, read_json
from modalign.models.tower_file import split_tower
from modalign.models.upcast import upcast
from modalign.models.weights import fingerprint

OPEN_CLIP = "open_clip_config.json"


class VisionEncoder(ABC):
    """A frozen image network that gives one vector a picture.

    Which of a network's outputs that vector is depends on its family; docs/vision.md lists them.

    Attributes:
        module: the library's own network, in `eval()`, without gradients.
        spec: what was passed to `modalign.load_vision`.
        revision: the commit a hub name resolved to, None for local files.
        preprocess: a PIL image → 3×H×W; picklable.
        transform: a text that changes whenever `preprocess` would.
        input_size: (H, W) of what `preprocess` makes.
        embed_dim: d_t, the width of the feature.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: str,
        preprocess: Callable[[Any], Tensor],
        transform: str,
        *,
        revision: str | None = None,
    ) -> None:
        self.module = module.eval().requires_grad_(False)
        if self.dtype in (torch.float16, torch.bfloat16):
            self.module.float()
        self.spec = spec
        self.revision = revision
        self.preprocess = preprocess
        self.transform = transform
        self.input_size = made_size(preprocess)
        self.embed_dim = self._tried_on(self.input_size)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """The pooled feature, without gradients.

        Args:
            pixels: B×3×H×W, as `preprocess` makes them.

        Returns:
            B×d_t, raw (not normalised); half precision is upcast to float32, float64 is kept.
        """
        if self.module.training:
            self.module.eval()
        return upcast(self._pooled(pixels.to(self.dtype)))

    @abstractmethod
    def _pooled(self, pixels: Tensor) -> Tensor:
        """B×3×H×W of the weights' type → B×d_t."""

    @property
    @abstractmethod
    def architecture(self) -> str:
        """A text that changes whenever equal weights would compute something else."""

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Moves the network; returns self."""
        self.module.to(device=device, dtype=dtype)
        return self

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights, which pixels are cast to."""
        return next(self.module.parameters()).dtype

    @property
    def input_identity(self) -> str:
        """A text that changes whenever `preprocess` would change."""
        return self.transform

    @property
    def fingerprint(self) -> str:
        """A hash of weights, architecture and transform: 64 hexadecimal digits, computed when asked."""
        return fingerprint(f"{self.architecture}\n{self.input_identity}", self._weights())

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        """What the feature depends on, by name, in a fixed order."""
        yield from sorted(self.module.state_dict().items())

    def with_transform(self, preprocess: Callable[[Any], Tensor], transform: str) -> Self:
        """The same network under another transform.

        Args:
            preprocess: a PIL image → 3×H×W; picklable.
            transform: a text that changes whenever `preprocess` would.

        Raises:
            ModelError: the network cannot take what the transform makes.
        """
        twin = copy.copy(self)
        twin.preprocess, twin.transform = preprocess, transform
        twin.input_size = made_size(preprocess)
        twin._tried_on(twin.input_size)
        return twin

    def _tried_on(self, size: tuple[int, int]) -> int:
        """d_t, found by one picture: also the proof that network and transform fit."""
        try:
            feature = self.encode(torch.zeros(1, 3, *size, device=self.device))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ModelError(
                f"{self.spec}: the network does not take the {size[0]}×{size[1]} pictures that its transform makes "
                f"({first_line(error)}): set the transform's size to the network's"
            ) from error
        if feature.ndim != 2:
            raise ModelError(
                f"{self.spec} gives {'×'.join(map(str, feature.shape))} numbers for one picture, not one vector: "
                "use a model with a pooled output"
            )
        return int(feature.shape[1])


def made_size(preprocess: Callable[[Any], Tensor]) -> tuple[int, int]:
    """(H, W) of the pixels a transform makes, tried on one grey picture."""
    from PIL import Image

    height, width = preprocess(Image.new("RGB", (64, 48), "grey")).shape[-2:]
    return int(height), int(width)


def load_vision(spec: str | Path, *, device: torch.device | str = "cpu") -> VisionEncoder:
    """Loads an image network behind the `VisionEncoder` contract.

    Args:
        spec: one of

            - `timm:<name>`: a timm model with its pretrained weights, `timm:<name>@<file>`: with a checkpoint file,
              `timm:local-dir:<folder>`, `timm:hf-hub:<owner>/<name>[@revision]`;
            - `hf:<owner>/<name>[@revision]` or `hf:<folder>`: a vision model of transformers (DINOv2, DINOv3, MLCD,
              SigLIP, CLIP, ViT, …; docs/vision.md lists them);
            - any other spec that `modalign.load` takes, for its image tower: `open_clip:…`, a run, a saved model, any
              of them or an `hf:` model with `+visual@<file>`;
            - `demo`: EfficientNet-Lite2 (ImageNet), from a package of the `demo` extra.
        device: where the network goes.

    Returns:
        The network, frozen and in `eval()`.

    Raises:
        ModelError: no such model, or one that cannot be used as asked; the message says what to write instead.
    """
    name = str(spec)
    kind, _, rest = name.partition(":")
    base, tower = split_tower(name)
    if tower is not None:
        if kind == "timm":
            raise ModelError(f"{base} is an image tower itself: write timm:<name>@{tower} for other weights")
        return _tower(spec).to(device)
    if kind in VISION_KINDS and not isinstance(spec, Path):
        return VISION_KINDS[kind](rest, name).to(device)
    if kind != "open_clip" and not Path(name).expanduser().exists():
        near = difflib.get_close_matches(kind.lower(), (*VISION_KINDS, "open_clip"), n=1)
        told = f"did you mean {near[0]}:{rest}?" if near and rest else "write timm:…, hf:…, open_clip:… or a folder"
        raise ModelError(f"there is no vision model {name!r}: {told}")
    _refuse_image_network(Path(name).expanduser(), name)
    return _tower(spec).to(device)


def _refuse_image_network(folder: Path, name: str) -> None:
    """A folder of transformers is read as a model of two towers unless its spec says hf:."""
    from modalign.models.hugging_face_specs import KINDS

    if not (folder / "config.json").is_file() or any((folder / other).is_file() for other in (RECORD, OPEN_CLIP)):
        return
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in (None, "siglip2", *KINDS):
        raise ModelError(f"{name} is no model of two towers (model_type {kind!r}): write hf:{name}")


def _timm(rest: str, spec: str) -> VisionEncoder:
    from modalign.models.vision_timm import load_timm

    return load_timm(rest, spec)


def _hugging_face(rest: str, spec: str) -> VisionEncoder:
    from modalign.models.vision_hugging_face import load_hugging_face_vision

    return load_hugging_face_vision(rest, spec)


def _demo(rest: str, spec: str) -> VisionEncoder:
    from modalign.demo.target import target

    if rest:
        raise ModelError(f"{spec!r}: the demo has one vision model: write demo")
    return target()


def _tower(spec: str | Path) -> VisionEncoder:
    from modalign.models.vision_tower import ImageTower, load_tower

    tower: ImageTower = load_tower(spec)
    return tower


VISION_KINDS: dict[str, Callable[[str, str], VisionEncoder]] = {"timm": _timm, "hf": _hugging_face, "demo": _demo}
