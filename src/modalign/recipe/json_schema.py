"""A JSON Schema (draft 2020-12) of the recipe, for editors: keys, types, ranges, descriptions, each method's keys."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from modalign.methods import METHODS, Combine, Method, OnCurriculum
from modalign.recipe import DEFAULT_METHOD, Recipe
from modalign.recipe.showing import first_sentence, method_keys

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """The schema of a recipe file, in which every key may be left out.

    Returns:
        A JSON value. `method` is a name, or one of the methods told apart by `name`; without one it is the default.
    """
    tree = Recipe.model_json_schema(schema_generator=_Untitled)
    definitions: dict[str, Any] = tree.setdefault("$defs", {})
    for name, cls in METHODS.items():
        definitions[f"method-{name}"] = _method(name, cls, definitions)
    single = [{"$ref": f"#/$defs/method-{name}"} for name in METHODS]
    definitions["method-combine"] = {
        "type": "object",
        "description": first_sentence(Combine),
        "properties": {
            "name": {"const": Combine.name},
            "methods": {"type": "array", "minItems": 1, "items": {"oneOf": single}},
        },
        "required": ["name", "methods"],
        "additionalProperties": False,
    }
    paced = _method(OnCurriculum.name, OnCurriculum, definitions)
    paced["properties"]["method"] = {"description": "the method on the curriculum", "oneOf": single}
    definitions["method-curriculum"] = paced | {"required": ["name", "method"]}
    names = {"enum": list(METHODS), "description": "a method with its defaults"}
    tree["properties"]["method"] = {
        "description": "which method trains, and its settings",
        "oneOf": [names, *single, *({"$ref": f"#/$defs/method-{kind}"} for kind in ("combine", "curriculum"))],
    }
    return {"$schema": DIALECT, **tree}


def _method(name: str, cls: type[Method], definitions: dict[str, Any]) -> dict[str, Any]:
    made = TypeAdapter(cls).json_schema(schema_generator=_Untitled)
    definitions |= made.get("$defs", {})
    told = method_keys(name)
    properties = {
        key: {**field, "description": told[key]} if key in told else field for key, field in made["properties"].items()
    }
    return {
        "type": "object",
        "description": first_sentence(cls),
        "properties": {"name": {"const": name}, **properties},
        "required": [] if name == DEFAULT_METHOD else ["name"],
        "additionalProperties": False,
    }


class _Untitled(GenerateJsonSchema):
    """Without the title pydantic makes of every key: editors would show it above the description."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def is_instance_schema(self, schema: Any) -> dict[str, Any]:
        """A method inside a method: what may stand there is written by hand."""
        return {}
