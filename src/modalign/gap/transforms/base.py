"""What every transform can do: be fitted on features of both modalities, map either, be saved."""

from __future__ import annotations

import difflib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar, cast

import torch
from torch import Tensor

from modalign.errors import ModelError, RecipeError
from modalign.gap.features import FeatureError
from modalign.gap.transforms.vectors import mapped, width_of

if TYPE_CHECKING:
    from modalign.gap.transforms.vectors import Vectors

Modality = Literal["image", "text"]
ROLES: dict[str, Modality] = {
    "image": "image",
    "text": "text",
    "document-image": "image",
    "document-text": "text",
    "query-image": "image",
    "query-text": "text",
}
"""What a vector is used as → the modality it is of. Most transforms look at the modality alone."""

Given = TypeVar("Given")


class NotFittedError(ModelError, ValueError):
    """A transform that is asked to map before it was fitted."""


@dataclass(eq=False, repr=False, kw_only=True)
class Transform(ABC):
    """A map of image and text features that is fitted, not trained; parameters and methods as in scikit-learn.

    Attributes that end in an underscore are there once it is fitted: float64 tensors, or plain numbers.

    Args:
        normalize: scale every row to length 1 before anything else, in `fit` and in `transform`.
    """

    kind: ClassVar[str]
    """Its name in files and on the command line."""

    normalize: bool = True

    # ---- parameters -----------------------------------------------------------------------------------------

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters by name; `deep` is there for scikit-learn and changes nothing."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def set_params(self, **parameters: Any) -> Self:
        """Sets parameters; what was fitted stays until the next `fit`.

        Raises:
            RecipeError: there is no such parameter.
        """
        known = self.get_params()
        for name, value in parameters.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                told = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
                raise RecipeError(f"{self.kind} has no parameter {name!r}: {told}", keys=(name,))
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        changed = [(field.name, getattr(self, field.name)) for field in fields(self)]
        defaults = {field.name: field.default for field in fields(self)}
        told = ", ".join(f"{name}={value!r}" for name, value in changed if value != defaults[name])
        return f"{type(self).__name__}({told})"

    def _check_parameters(self) -> None:
        """Raises a `RecipeError` for a parameter that makes no sense."""
        for name, value in self.get_params().items():
            if isinstance(getattr(type(self), name, None), bool) and not isinstance(value, bool):
                raise self._wrong(name, "True or False")

    def _wrong(self, name: str, wanted: str) -> RecipeError:
        return RecipeError(f"{self.kind}: {name} is {getattr(self, name)!r}; pass {wanted}", keys=(name,))

    # ---- fitting and mapping --------------------------------------------------------------------------------

    def fit(self, image: Vectors, text: Vectors) -> Self:
        """Fits the map, forgetting what was fitted before.

        Args:
            image: N×d features, raw or unit.
            text: M×d; with a transform of pairs M = N, and row i belongs to row i of `image`.

        Returns:
            The transform itself.

        Raises:
            FeatureError: shapes that do not fit, rows that are not finite or zero, too few rows.
            RecipeError: a parameter that makes no sense.
        """
        self._forget()
        return self.partial_fit(image, text)

    @abstractmethod
    def partial_fit(self, image: Vectors, text: Vectors) -> Self:
        """Fits the map to these rows and all that came before; arguments as in `fit`."""

    def transform(self, features: Given, role: str) -> Given:
        """Maps features.

        Args:
            features: N×d, raw or unit.
            role: what they are: "image" or "text"; also "document-image", "document-text", "query-text" and
                "query-image", which are the same to all transforms but `Center` and `NNN`.

        Returns:
            N×w, of the library and type that came in (half precision becomes float32), without a gradient.

        Raises:
            NotFittedError: `fit` was not called.
            FeatureError: no such role, another width than it was fitted on, rows that are not finite or zero.
        """
        if role not in ROLES:
            raise FeatureError(f"there is no role {role!r}: pass {', '.join(ROLES)}")
        given = cast("Vectors", features)
        width = width_of(given, role)
        self.check_fits(width, ROLES[role])
        out = len(self._map(torch.zeros(1, width, dtype=torch.float64), role)[0])
        return cast("Given", mapped(given, role, self.normalize, lambda rows: self._map(rows, role), out))

    def check_fits(self, width: int, *modalities: Modality) -> None:
        """Raises what `transform` would for features of this width.

        Args:
            width: d.
            modalities: of which modality; none = of both.

        Raises:
            NotFittedError: `fit` was not called.
            FeatureError: it was fitted on another width.
        """
        self._check_fitted()
        for modality, fitted in self._widths().items():
            if width != fitted and (not modalities or modality in modalities):
                raise FeatureError(
                    f"{modality} features have {width} dimensions and {self!r} was fitted on {fitted}: "
                    "pass features of the model it was fitted for"
                )

    def fit_transform(self, image: Given, text: Given) -> tuple[Given, Given]:
        """`fit`, then both modalities mapped."""
        self.fit(cast("Vectors", image), cast("Vectors", text))
        return self.transform(image, "image"), self.transform(text, "text")

    @abstractmethod
    def _map(self, rows: Tensor, role: str) -> Tensor:
        """n×d, float64 → n×w."""

    @abstractmethod
    def _widths(self) -> dict[Modality, int]:
        """The widths it was fitted on; empty where it was not."""

    def _check_fitted(self) -> None:
        if not self._widths():
            raise NotFittedError(f"{self!r} is not fitted: call fit(image, text) first, or load a saved one")

    def _forget(self) -> None:
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)

    # ---- disk -----------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """All there is to save: a JSON-ready dictionary, and tensors by name."""
        fitted = {name: value for name, value in vars(self).items() if name.endswith("_")}
        tensors = {name: value for name, value in fitted.items() if isinstance(value, Tensor)}
        plain = {name: value for name, value in fitted.items() if name not in tensors}
        return {"kind": self.kind, "parameters": self.get_params(), "fitted": plain}, tensors

    def take(self, told: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Takes over what `state` gave.

        Raises:
            KeyError: something is missing.
        """
        for name, value in {**told["fitted"], **tensors}.items():
            setattr(self, name, value)

    def save(self, folder: str | Path) -> None:
        """Writes transform.json and transform.safetensors, which `load` reads back.

        Args:
            folder: where; it appears whole or not at all, and an earlier transform in it is replaced.

        Raises:
            NotFittedError: there is nothing to save.
            OutputError: the folder cannot be written.
        """
        from modalign.gap.transforms.disk import write

        self._check_fitted()
        write(Path(folder), *self.state())

    @property
    def fingerprint(self) -> str:
        """A hash of the parameters and all that was fitted: 64 hexadecimal digits."""
        from modalign.models.weights import fingerprint

        told, tensors = self.state()
        return fingerprint(json.dumps(told, sort_keys=True), sorted(tensors.items()))
