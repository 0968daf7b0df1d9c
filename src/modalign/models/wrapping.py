"""From the user's own functions to a model: what `modalign.wrap` is given, checked and put in order."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from modalign.errors import ModelError
from modalign.models.dual_encoder import TOWERS, TowerName
from modalign.models.wrapped import Wrapped


def wrap(
    encode_image: Callable[..., Tensor],
    encode_text: Callable[..., Tensor],
    preprocess: Callable[[Any], Tensor],
    tokenize: Callable[[list[str]], Tensor],
    *,
    identity: str,
    module: nn.Module | None = None,
    towers: Mapping[TowerName, str | nn.Module] | None = None,
    projections: Mapping[TowerName, str | nn.Module] | None = None,
    embed_dim: int | None = None,
    logit_scale: float = 100.0,
    logit_bias: float | None = None,
) -> Wrapped:
    """Puts two functions of the user's own behind the contract of a model.

    With a `module` both functions take it first, `encode_image(module, pixels)`, because what trains is a copy of it;
    its own bound methods (`net.encode_image`) will do as well. Without one they take their input alone, and the model
    can be measured but not trained.

    Args:
        encode_image: pixels, B×3×H×W as `preprocess` makes them → B×d features, raw (not normalised).
        encode_text: tokens, B×L as `tokenize` makes them → B×d features, raw.
        preprocess: a PIL image → 3×H×W.
        tokenize: captions → B×L integers, every row of one length.
        identity: a text that names this code, preprocessing and vocabulary: another whenever one of them is changed,
            so that no stored feature of the old ones is ever used.
        module: holds every parameter.
        towers: which of its parameters are of the image and of the text tower: a regular expression searched for in
            the parameter's name, or a submodule. What neither names (a temperature) never trains.
        projections: the last layer of each tower (a submodule, or its name), where there is one: allows
            `train: projection`.
        embed_dim: d; None = found by embedding one caption.
        logit_scale: the factor in front of cosine similarities.
        logit_bias: what is added to the logits (SigLIP).

    Returns:
        The model.

    Raises:
        ModelError: a function takes something else, or towers or projections name nothing, or both towers the same.
    """
    root = module if module is not None else nn.Module()
    functions = {
        tower: _taking(f"encode_{tower}", function, module)
        for tower, function in zip(TOWERS, (encode_image, encode_text), strict=True)
    }
    if module is not None and not towers:
        raise ModelError(
            "modalign.wrap was given a module and no towers: say which parameters are whose, as in "
            'towers={"image": module.visual, "text": "^text"}'
        )
    model = Wrapped(
        root,
        functions,
        preprocess,
        tokenize,
        identity,
        {tower: _pattern(root, tower, given) for tower, given in (towers or {}).items()},
        {tower: _name(root, tower, given) for tower, given in (projections or {}).items()},
        (logit_scale, logit_bias),
    )
    model.width = embed_dim if embed_dim is not None else model.measured_width()
    return model


def _taking(
    name: str, function: Callable[..., Tensor], module: nn.Module | None
) -> Callable[[nn.Module, Tensor], Tensor]:
    """A function of (module, inputs), from what the user gave."""
    if module is None:
        return lambda _, inputs: function(inputs)
    if isinstance(function, nn.Module):
        layer = _name(module, name, function)
        return lambda network, inputs: network.get_submodule(layer)(inputs)
    if inspect.ismethod(function) and function.__self__ is module:
        return function.__func__
    try:
        inspect.signature(function).bind(module, None)
    except TypeError:
        raise ModelError(
            f"{name} must take the module first, {name}(module, inputs), because what trains is a copy of it: add the "
            "argument, and use it instead of the outer module"
        ) from None
    return function


def _pattern(module: nn.Module, tower: str, given: str | nn.Module) -> str:
    """A regular expression over the names of a tower's parameters."""
    names = [name for name, _ in module.named_parameters()]
    if isinstance(given, nn.Module):
        layer = _name(module, tower, given)
        given = f"^{re.escape(layer)}\\." if layer else ""
    try:
        matched = tower in TOWERS and any(re.search(given, name) for name in names)
    except re.error as error:
        raise ModelError(
            f"towers: {given!r} is no regular expression ({error}): write one, or pass a submodule"
        ) from None
    if not matched:
        told = f"it matches none of {', '.join(names[:3])}, …" if tower in TOWERS else "there are image and text"
        raise ModelError(f"towers: {tower!r}: {given!r}: {told}; name the parameters of each tower")
    return given


def _name(module: nn.Module, what: str, given: str | nn.Module) -> str:
    """The name of a submodule."""
    for name, layer in module.named_modules():
        if layer is given or name == given:
            return str(name)
    told = given if isinstance(given, str) else type(given).__name__
    raise ModelError(f"{what}: {told} is not in the module that was wrapped: pass one of its submodules")
