"""A model no adapter knows: the user's own two functions behind the `DualEncoder` contract."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from modalign.errors import ModelError
from modalign.models.dual_encoder import DualEncoder, TowerName
from modalign.models.folder import model_folder, read_record
from modalign.models.upcast import upcast
from modalign.models.weights import fill, read_weights, write_weights

WEIGHTS = "model.safetensors"


class Wrapped(DualEncoder):
    """What `wrap` returns; its weights are read back by `load_weights`, because its code is the user's."""

    family: ClassVar[str] = "wrapped"

    def __init__(
        self,
        module: nn.Module,
        functions: Mapping[TowerName, Callable[[nn.Module, Tensor], Tensor]],
        preprocess: Callable[[Any], Tensor],
        tokenize: Callable[[list[str]], Tensor],
        identity: str,
        towers: Mapping[TowerName, str],
        projections: Mapping[TowerName, str],
        logits: tuple[float, float | None],
    ) -> None:
        super().__init__(module, f"wrapped:{identity}")
        self.preprocess = preprocess
        self.width = 0
        self._functions, self._tokenize = functions, tokenize
        self._towers, self._projections, self._logits = towers, projections, logits
        self._seen_last: set[str] = set()
        for name, _ in module.named_parameters():
            if len(self._owners(name)) > 1:
                raise ModelError(f"both towers name {name}: give each of the towers parameters of its own")

    # ---- features -------------------------------------------------------------------------------------------

    def image_trunk(self, pixels: Tensor) -> Tensor:
        """B×3×H×W → B×w: `encode_image` without the projection that was named, or whole."""
        return self._trunk("image", pixels.to(self.dtype))

    def project_image(self, hidden: Tensor) -> Tensor:
        """B×w → B×d, raw: the image projection that was named, or the identity."""
        return self._project("image", hidden)

    def text_trunk(self, tokens: Tensor) -> Tensor:
        """B×L → B×w: `encode_text` without the projection that was named, or whole."""
        return self._trunk("text", tokens)

    def project_text(self, hidden: Tensor) -> Tensor:
        """B×w → B×d, raw: the text projection that was named, or the identity."""
        return self._project("text", hidden)

    def token_lengths(self, tokens: Tensor) -> Tensor:
        """B×L → B integers: L, for padding may count."""
        return torch.full_like(tokens[:, 0], tokens.shape[1])

    def measured_width(self) -> int:
        """d, from one caption."""
        with torch.no_grad():
            return int(self.encode_text(self.tokenize(["a"]).to(self.device)).shape[1])

    def _trunk(self, tower: TowerName, inputs: Tensor) -> Tensor:
        network = self.network
        if tower not in self._projections:
            return self._called(tower, network, inputs)
        if tower not in self._seen_last and not any(layer.training for layer in network.modules()):
            self._see_last(tower, inputs)
        with _identity_at(network, self._projections[tower]):
            return self._called(tower, network, inputs)

    @torch.no_grad()
    def _see_last(self, tower: TowerName, inputs: Tensor) -> None:
        """Checks once that the projection over the rest is the function itself."""
        whole = self._called(tower, self.network, inputs)
        try:
            with _identity_at(self.network, self._projections[tower]):
                hidden = self._called(tower, self.network, inputs)
            composed = self._last(tower)(hidden)
            same = whole.shape == composed.shape and torch.allclose(whole, composed, rtol=1e-4, atol=1e-5)
        except RuntimeError:  # a later layer takes no such width
            same = False
        if not same:
            raise ModelError(
                f"{self._projections[tower]} is not the last layer of encode_{tower}: name as its projection the layer "
                "whose output is returned as it is, or none"
            )
        self._seen_last.add(tower)

    def _project(self, tower: TowerName, hidden: Tensor) -> Tensor:
        if tower in self._projections:
            hidden = self._last(tower)(hidden)
        return upcast(hidden)

    def _last(self, tower: TowerName) -> nn.Module:
        layer: nn.Module = self.network.get_submodule(self._projections[tower])
        return layer

    def _called(self, tower: TowerName, network: nn.Module, inputs: Tensor) -> Tensor:
        output: Any = self._functions[tower](network, inputs)
        if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(inputs):
            got = "×".join(map(str, output.shape)) if isinstance(output, Tensor) else type(output).__name__
            raise ModelError(
                f"encode_{tower} returned {got} for {len(inputs)} rows: return one row of features for each"
            )
        return output

    # ---- inputs, parameters ---------------------------------------------------------------------------------

    def tokenize(self, captions: list[str]) -> Tensor:
        """Captions → B×L token ids, as the user's function makes them."""
        tokens: Any = self._tokenize(captions)
        if not isinstance(tokens, Tensor) or tokens.ndim != 2 or len(tokens) != len(captions):
            got = "×".join(map(str, tokens.shape)) if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ModelError(f"tokenize returned {got} for {len(captions)} captions: return a B×L tensor of integers")
        return tokens

    @property
    def embed_dim(self) -> int:
        """The width d of the shared space."""
        return self.width

    @property
    def logit_scale(self) -> float:
        """The factor in front of cosine similarities, as given."""
        return self._logits[0]

    @property
    def logit_bias(self) -> float | None:
        """What is added to the logits, as given."""
        return self._logits[1]

    def tower_of(self, name: str) -> TowerName | None:
        """Which tower was said to own a parameter; None for a parameter of neither, which never trains."""
        owners = self._owners(name)
        return owners[0] if owners else None

    def _owners(self, name: str) -> list[TowerName]:
        return [tower for tower, pattern in self._towers.items() if re.search(pattern, name)]

    def projection_names(self, tower: TowerName) -> list[str]:
        """The names of a tower's projection parameters; `ModelError` where no projection was named."""
        if tower not in self._projections:
            raise ModelError(
                f"{self.spec} was wrapped without a projection of its {tower} tower: name it, "
                f'modalign.wrap(…, projections={{"{tower}": …}}), or use train: {tower} or train: full'
            )
        layer = self._projections[tower]
        return [f"{layer}.{name}" for name, _ in self._last(tower).named_parameters()]

    @property
    def device(self) -> torch.device:
        """Where the parameters are; the CPU where there are none."""
        return next((parameter.device for parameter in self.module.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameters; float32 where there are none."""
        return next((parameter.dtype for parameter in self.module.parameters()), torch.float32)

    # ---- identity and disk ----------------------------------------------------------------------------------

    @property
    def input_identity(self) -> str:
        """The `identity` that was given."""
        return self.spec

    def write(self, folder: Path) -> None:
        """Writes the weights."""
        write_weights(self.module, folder / WEIGHTS)

    def load_weights(self, folder: str | Path) -> Self:
        """Takes over the weights of a run, or of a model that `save` wrote.

        Args:
            folder: the run's, or the saved model's.

        Returns:
            The model itself.

        Raises:
            ModelError: the folder holds no wrapped model, one of another identity, or weights that do not fit.
        """
        place = model_folder(Path(folder).expanduser())
        record = read_record(place)
        if record.get("family") != self.family:
            raise ModelError(f"{folder} holds no model that was wrapped: load it with modalign.load, or name its run")
        if record["spec"] != self.spec:
            raise ModelError(
                f"{folder} was saved under the identity {record['spec'].partition(':')[2]!r}, and this model has "
                f"{self.spec.partition(':')[2]!r}: wrap the code that it was made with"
            )
        self.module.to(getattr(torch, record["dtype"]))
        fill(self.module, read_weights(place / WEIGHTS), place / WEIGHTS, self.spec)
        return self


@contextmanager
def _identity_at(module: nn.Module, name: str) -> Iterator[None]:
    """Takes a layer out for a forward pass."""
    parent, _, last = name.rpartition(".")
    kept, place = module.get_submodule(name), module.get_submodule(parent)
    setattr(place, last, nn.Identity())
    try:
        yield
    finally:
        setattr(place, last, kept)
