from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import pytest

from modalign.errors import RecipeError
from modalign.methods import METHODS, ClipRefine, Combine, GeodesicMix, from_config, to_config


def test_every_method_is_known_by_its_own_name_and_survives_the_round_trip() -> None:
    for name, method in METHODS.items():
        assert method.name == name
        built = from_config({"name": name})
        assert built == method()
        assert from_config(to_config(built)) == built
        assert to_config(built).keys() == {"name", *(field.name for field in fields(method))}


def test_values_are_typed_by_the_fields() -> None:
    method = from_config({"name": "clip-refine", "alpha": 1, "std": "0.5", "shared": False, "prior": "uniform"})
    assert method == ClipRefine(alpha=1.0, std=0.5, shared=False, prior="uniform")
    assert isinstance(method.alpha, float) and isinstance(method.std, float)


def test_combine_is_a_list_of_methods() -> None:
    config = {"name": "combine", "methods": [{"name": "clip-refine", "rafa": 2.0}, {"name": "m2-mix"}]}
    method = from_config(config)
    assert method == Combine([ClipRefine(rafa=2.0), GeodesicMix()])
    assert from_config(to_config(method)) == method


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "clip-refin"}, "method.name = 'clip-refin': no such method; did you mean 'clip-refine'?"),
        ({"alpha": 0.5}, "method.name is missing; use one of clip-refine, contrastive"),
        ({"name": ["rafa"]}, "method.name = ['rafa']: no such method"),
        ({"name": "hycd", "alhpa": 0.3}, "unknown key 'method.alhpa' (value 0.3) for hycd; did you mean 'alpha'?"),
        ({"name": "contrastive", "alpha": 0.3}, "for contrastive; use one of contrastive"),
        ({"name": "hycd", "alpha": "half"}, "method.alpha = 'half': input should be a valid number"),
        ({"name": "hycd", "alpha": 2}, "method: alpha is 2; use a number from 0 to 1"),
        ({"name": "hycd", "features": "Raw"}, "method.features = 'Raw': input should be 'raw' or 'unit'"),
        ({"name": "rafa", "prior": None}, "method.prior = None: input should be 'normal', 'uniform'"),
        ({"name": "combine"}, "method.methods = None: list at least one method"),
        ({"name": "combine", "parts": []}, "unknown key 'method.parts' (value []) for combine"),
        (
            {"name": "combine", "methods": [{"name": "rafa"}, {"name": "hycd", "alpa": 1}]},
            "unknown key 'method.methods[1].alpa' (value 1) for hycd; did you mean 'alpha'?",
        ),
        ("clip-refine", "method = 'clip-refine': write a mapping with a name"),
    ],
)
def test_mistakes_are_one_line_that_names_key_value_and_remedy(config: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        from_config(config)
    assert "\n" not in str(caught.value)


def test_two_mistaken_values_are_both_told() -> None:
    with pytest.raises(RecipeError, match=r"method\.alpha = 'a'.*; method\.hycd = 'b'|method\.hycd.*; method\.alpha"):
        from_config({"name": "hycd", "alpha": "a", "hycd": "b"})
