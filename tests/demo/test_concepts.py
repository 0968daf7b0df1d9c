from __future__ import annotations

import pytest

from modalign.demo.concepts import FEWEST_PER_CLASS, LARGEST_FREE_CONCEPT, concept, kept_labels, splits

PEOPLE = "People & Body"


@pytest.mark.parametrize(
    "variants",
    [
        [
            ("1F9D1-200D-1F680", "astronaut", PEOPLE, "person-role"),
            ("1F468-200D-1F680", "man astronaut", PEOPLE, "person-role"),
            ("1F469-200D-1F680", "woman astronaut", PEOPLE, "person-role"),
        ],
        [
            ("1F3C3", "person running", PEOPLE, "person-activity"),
            ("1F3C3-200D-2640-FE0F-200D-27A1-FE0F", "woman running facing right", PEOPLE, "person-activity"),
        ],
        [
            ("1F385", "Santa Claus", PEOPLE, "person-fantasy"),
            ("1F936", "Mrs. Claus", PEOPLE, "person-fantasy"),
            ("1F9D1-200D-1F384", "Mx Claus", PEOPLE, "person-fantasy"),
        ],
        [
            ("1F550", "one o’clock", "Travel & Places", "time"),
            ("1F567", "twelve-thirty", "Travel & Places", "time"),
        ],
        [
            ("0031-FE0F-20E3", "keycap 1", "Symbols", "keycap"),
            ("0023-FE0F-20E3", "keycap #", "Symbols", "keycap"),
        ],
        [
            ("1F436", "dog face", "Animals & Nature", "animal-mammal"),
            ("1F415", "dog", "Animals & Nature", "animal-mammal"),
        ],
        [
            ("1F46A", "family", PEOPLE, "person-symbol"),
            ("1F468-200D-1F466", "family man boy", PEOPLE, "family"),
        ],
    ],
)
def test_variants_of_one_drawing_are_one_concept(variants: list[tuple[str, str, str, str]]) -> None:
    assert len({concept(*variant) for variant in variants}) == 1


def test_different_activities_stay_apart_although_they_share_code_points() -> None:
    running = concept("1F3C3-200D-2640-FE0F", "woman running", PEOPLE, "person-activity")
    walking = concept("1F6B6-200D-2640-FE0F", "woman walking", PEOPLE, "person-activity")
    cook = concept("1F469-200D-1F373", "woman cook", PEOPLE, "person-role")
    assert len({running, walking, cook}) == 3


def test_a_split_depends_on_the_concept_alone() -> None:
    names = [f"thing {i}" for i in range(200)]
    assert splits(names) == {**splits(names[:50]), **splits(names[50:])}
    assert splits(reversed(names)) == splits(names)


def test_a_concept_with_many_pictures_is_never_judged_on() -> None:
    names = [f"thing {i}" for i in range(200)]
    many = [name for name in names for _ in range(LARGEST_FREE_CONCEPT + 1)]
    assert set(splits(many).values()) == {"pretrain"}


def test_labels_of_small_classes_are_left_empty() -> None:
    birds = {f"bird{i}": "animal-bird" for i in range(FEWEST_PER_CLASS)}
    boats = {f"boat{i}": "transport-water" for i in range(FEWEST_PER_CLASS - 1)}
    labels = kept_labels({**birds, **boats, "x": "other-symbol"})
    assert {labels[name] for name in birds} == {"bird"}
    assert {labels[name] for name in (*boats, "x")} == {""}
