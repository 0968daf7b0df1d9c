"""Methods: which towers train, which frozen signals are read, which weighted terms are summed.

`METHODS` maps the names of recipes and the command line to classes. To add a method, write a dataclass on `Method`
and put it there.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from modalign.errors import RecipeError
from modalign.methods.base import Method
from modalign.methods.baselines import (
    Contrastive,
    GeodesicMix,
    HybridDistillation,
    HybridDistillationPairPull,
    SelfDistillation,
    Sigmoid,
)
from modalign.methods.clip_refine import ClipRefine
from modalign.methods.combine import Combine
from modalign.methods.gap_baselines import AlignClip, CsAligner, Cua, CyClip, ModGap
from modalign.methods.kuea import Kuea
from modalign.methods.kuea_baselines import AmRadio, FeatureMatching, Projection
from modalign.methods.paced import OnCurriculum
from modalign.methods.random_feature import RandomFeatureAlignment
from modalign.methods.tpc_cma import TpcCma
from modalign.training.curriculum import Phase

METHODS: dict[str, type[Method]] = {
    "clip-refine": ClipRefine,
    "contrastive": Contrastive,
    "sigmoid": Sigmoid,
    "self-kd": SelfDistillation,
    "hycd": HybridDistillation,
    "rafa": RandomFeatureAlignment,
    "hycd-pair-pull": HybridDistillationPairPull,
    "m2-mix": GeodesicMix,
    "kuea": Kuea,
    "projection": Projection,
    "feature": FeatureMatching,
    "am-radio": AmRadio,
    "tpc-cma": TpcCma,
    "align-clip": AlignClip,
    "cs-aligner": CsAligner,
    "cyclip": CyClip,
    "cua": Cua,
    "modgap": ModGap,
}

__all__ = [
    "METHODS",
    "AlignClip",
    "AmRadio",
    "ClipRefine",
    "Combine",
    "Contrastive",
    "CsAligner",
    "Cua",
    "CyClip",
    "FeatureMatching",
    "GeodesicMix",
    "HybridDistillation",
    "HybridDistillationPairPull",
    "Kuea",
    "Method",
    "ModGap",
    "OnCurriculum",
    "Projection",
    "RandomFeatureAlignment",
    "SelfDistillation",
    "Sigmoid",
    "TpcCma",
    "from_config",
    "to_config",
]


def from_config(config: Mapping[str, Any], where: str = "method") -> Method:
    """Builds a method from the recipe's `method:` section.

    Args:
        config: "name" and the method's fields; name "combine" and "methods", a list of such mappings; or name
            "curriculum" and "method", one of them, with the curriculum's fields.
        where: the section's key, for messages.

    Raises:
        RecipeError: an unknown name or key (with the nearest valid one) or a value that does not fit.
    """
    if not isinstance(config, Mapping):
        told = f"{where} = {config!r}: write a mapping with a name, such as {{name: clip-refine}}"
        raise RecipeError(told, keys=[where])
    values = dict(config)
    name = values.pop("name", None)
    if name == Combine.name:
        return _combined(values, where)
    if name == OnCurriculum.name:
        if "method" not in values:
            told = f"{where}.method is missing: name the method to put on a curriculum, such as {{name: clip-refine}}"
            raise RecipeError(told, keys=[f"{where}.method"])
        values["method"] = from_config(values["method"], f"{where}.method")
        return _built(OnCurriculum, values, where)
    if not isinstance(name, str) or name not in METHODS:
        known = [*METHODS, Combine.name, OnCurriculum.name]
        told = f"{where}.name = {name!r}: no such method; {_nearest(name, known)}"
        if name is None:
            told = f"{where}.name is missing; use one of {', '.join(known)}"
        raise RecipeError(told, keys=[f"{where}.name"])
    return _built(METHODS[name], values, where)


def _built(method: type[Method], values: Mapping[str, Any], where: str) -> Method:
    valid = [field.name for field in fields(method) if field.init]  # type: ignore[arg-type]
    problems = _unknown(values, valid, where, method.name)
    adapter, good = TypeAdapter(method), {key: values[key] for key in valid if key in values}
    try:
        built = adapter.validate_python(good)
    except ValidationError as error:
        problems += [_explain(problem, where) for problem in error.errors()]
        if wrong := {problem["loc"][0] for problem in error.errors() if problem["loc"]}:
            try:  # of a wrong type; the limits of the others have not been looked at
                adapter.validate_python({key: value for key, value in good.items() if key not in wrong})
            except ValidationError as further:
                problems += [_explain(problem, where) for problem in further.errors()]
    if problems:
        raise RecipeError(*(told for _, told in problems), keys=[key for key, _ in problems])
    return built


def to_config(method: Method) -> dict[str, Any]:
    """The mapping that `from_config` builds the same method from: its name and every field."""
    if isinstance(method, Combine):
        return {"name": method.name, "methods": [to_config(part) for part in method.methods]}
    values = {field.name: _plain(getattr(method, field.name)) for field in fields(method) if field.init}  # type: ignore[arg-type]
    return {"name": method.name, **values}


def _plain(value: Any) -> Any:
    """What YAML can say of a field."""
    if isinstance(value, Method):
        return to_config(value)
    if isinstance(value, Phase):
        return asdict(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _combined(values: dict[str, Any], where: str) -> Combine:
    problems = _unknown(values, ["methods"], where, Combine.name)
    parts = values.get("methods")
    if not isinstance(parts, list | tuple) or not parts:
        told = f"{where}.methods = {parts!r}: list at least one method, such as [{{name: clip-refine}}]"
        problems.append((f"{where}.methods", told))
        parts = []
    methods: list[Method] = []
    for position, part in enumerate(parts):
        try:
            methods.append(from_config(part, f"{where}.methods[{position}]"))
        except RecipeError as error:
            problems += zip(error.keys, error.problems, strict=True)
    if problems:
        raise RecipeError(*(told for _, told in problems), keys=[key for key, _ in problems])
    try:
        return Combine(methods)
    except ValueError as error:
        raise RecipeError(f"{where}: {error}", keys=[f"{where}.methods"]) from None


def _unknown(values: Mapping[str, Any], valid: list[str], where: str, name: str) -> list[tuple[str, str]]:
    """(key, what is wrong with it) for every key the method does not have."""
    return [
        (f"{where}.{key}", f"unknown key '{where}.{key}' (value {value!r}) for {name}; {_nearest(key, valid)}")
        for key, value in values.items()
        if key not in valid
    ]


def _nearest(word: object, known: Sequence[str]) -> str:
    # Two, because the first guess for a slip like "alfa" is "rafa".
    close = difflib.get_close_matches(str(word), known, n=2, cutoff=0.6)
    if not close:
        return f"use one of {', '.join(known)}"
    return f"did you mean {' or '.join(repr(key) for key in close)}?"


def _explain(problem: Mapping[str, Any], where: str) -> tuple[str, str]:
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:  # raised by the method itself, in a message that names the field
        return where, f"{where}: {message}"
    key = ".".join([where, *(str(part) for part in problem["loc"])])
    return key, f"{key} = {problem['input']!r}: {message[0].lower()}{message[1:]}"
