"""What a frozen network has to offer to be run once and stored, and why some must not be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from modalign.errors import ModelError
from modalign.features import Part
from modalign.models.dual_encoder import DualEncoder, TowerName
from modalign.models.weights import fingerprint


class Encoder(Protocol):
    """A frozen network over pictures: a `VisionEncoder`, or one side of a dual encoder as a `Tower`."""

    @property
    def spec(self) -> str:
        """What was loaded."""

    @property
    def fingerprint(self) -> str:
        """A hash of everything `encode` computes with."""

    @property
    def input_identity(self) -> str:
        """A text that changes whenever `preprocess` would."""

    @property
    def preprocess(self) -> Callable[[Any], Tensor]:
        """A PIL image → 3×H×W, picklable."""

    @property
    def module(self) -> nn.Module:
        """The network itself."""

    @property
    def device(self) -> torch.device:
        """Where it lives."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights, which pixels are cast to."""

    def encode(self, pixels: Tensor) -> Tensor:
        """B×3×H×W → B×w, raw."""


@dataclass(frozen=True)
class Tower:
    """One side of a dual encoder.

    Attributes:
        model: both sides.
        tower: which of them.
        part: "features" = the raw d-dimensional features; "trunk" = the projection's input.
    """

    model: DualEncoder
    tower: TowerName = "image"
    part: Part = "features"

    @property
    def spec(self) -> str:
        """What was loaded, and which part of it this is."""
        return f"{self.model.spec} ({self.tower} {self.part})"

    @property
    def fingerprint(self) -> str:
        """A hash of this side's weights and the architecture: another text tower leaves the pictures' rows valid."""
        without = {"logit_scale", "logit_bias"}
        if self.part == "trunk":
            without |= set(self.model.projection_names(self.tower))
        state = self.model.module.state_dict()
        mine = [n for n in sorted(state) if n not in without and self.model.tower_of(n) in (self.tower, None)]
        # What neither tower owns, both may read.
        identity = f"{self.tower} {self.part}\n{self.model.architecture}"
        return fingerprint(identity, ((name, state[name]) for name in mine))

    @property
    def input_identity(self) -> str:
        """The model's: its transform and tokenizer."""
        return self.model.input_identity

    @property
    def preprocess(self) -> Callable[[Any], Tensor]:
        """The model's evaluation transform."""
        return self.model.preprocess

    @property
    def module(self) -> nn.Module:
        """The network, in the mode of its forward passes."""
        network: nn.Module = self.model.network
        return network

    @property
    def device(self) -> torch.device:
        """Where it lives."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return self.model.dtype

    def encode(self, inputs: Tensor) -> Tensor:
        """B×3×H×W pixels or B×L tokens → B×w, raw."""
        if self.tower == "image":
            return self.model.image_trunk(inputs) if self.part == "trunk" else self.model.encode_image(inputs)
        return self.model.text_trunk(inputs) if self.part == "trunk" else self.model.encode_text(inputs)


class Decoded:
    """The encoder that only looks whether a picture can be read: its features have no columns."""

    spec = "decoding"
    fingerprint = "decoding"
    input_identity = ""
    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self) -> None:
        self.module = nn.Identity()

    def preprocess(self, image: Any) -> Tensor:
        """Nothing of the picture."""
        return torch.empty(0)

    def encode(self, pixels: Tensor) -> Tensor:
        """B×0."""
        return pixels


# ---- what must not be stored --------------------------------------------------------------------------------


def refuse_unsteady(encoder: Encoder | Tower) -> None:
    """Refuses a network whose feature of a picture is not always the same.

    Raises:
        ModelError: names the random transform, the active dropout or the batch statistics.
    """
    told = f"{encoder.spec} cannot be stored"
    for name, module in encoder.module.named_modules():
        kind = f"{name or 'the network'} ({type(module).__name__})"
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            raise ModelError(
                f"{told}: {kind} takes its statistics from the batch, so a feature depends on its neighbours; "
                "call eval(), or use frozen: live"
            )
        if module.training and (setting := _dropout(module)):
            raise ModelError(
                f"{told}: {kind} has {setting} and is in training mode, so features are drawn at random; "
                "call eval(), or use frozen: live"
            )
    if isinstance(encoder, Tower) and encoder.tower == "text":
        return
    if culprit := _random_part(encoder.preprocess):
        raise ModelError(
            f"{told}: its transform is random ({culprit}), so one stored feature would stand for all views; "
            "use the evaluation transform, or frozen: live"
        )


def _dropout(module: nn.Module) -> str:
    """The setting that makes a layer drop something, with its value."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return f"p = {module.p:g}" if module.p > 0 else ""
    for name in ("dropout", "attention_dropout", "hidden_dropout", "drop_prob", "dropout_p"):
        value = getattr(module, name, 0.0)
        if isinstance(value, float) and value > 0:
            return f"{name} = {value:g}"
    return ""


def _random_part(preprocess: Callable[[Any], Tensor]) -> str:
    """What is random about a transform: a step that says so, or else two views of one picture that differ."""
    from PIL import Image

    for step in _steps(preprocess):
        name = type(step).__name__
        if name.startswith(("Random", "AutoAugment", "TrivialAugment", "AugMix", "ColorJitter", "Elastic")):
            return name
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (67, 83, 3), generator=generator, dtype=torch.uint8)
    picture = Image.fromarray(noise.numpy())
    views = [preprocess(picture) for _ in range(3)]
    return "" if all(torch.equal(views[0], view) for view in views[1:]) else type(preprocess).__name__


def _steps(transform: Any) -> Iterator[Any]:
    yield transform
    for inner in getattr(transform, "transforms", ()):
        yield from _steps(inner)
