"""Which pictures show the same thing, which split a concept belongs to, and what it is called in zero-shot tasks."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping

SHARES = {"pretrain": 0.40, "refine": 0.30, "test": 0.30}
"""Of the concepts that may go anywhere."""

LARGEST_FREE_CONCEPT = 6
"""A concept with more pictures (24 clock faces, 42 families) is always pre-trained on: in a judged split such
near-duplicates, whose captions differ by one word, would decide the figure."""

# Whole subcategories of variations on one drawing: letters on a button, arrows on a square, hair on a head.
_ONE_CONCEPT = frozenset({"keycap", "alphanum", "arrow", "geometric", "zodiac", "family", "person", "cat-face"})

# Variants that the name tells: colour, direction, hour, phase, number, state. The first pattern found in a name counts.
_VARIANTS = {
    "clock face": r"o’clock|-thirty",
    "moon": r"(new|full|crescent|gibbous|quarter) moon",
    "person": r"^(man|woman|person) (frowning|pouting)$",
    "heart": r"^(light )?\w+ heart$",
    "globe": r"globe",
    "book": r"^(closed|open|green|blue|orange) book$|^books$",
    "notebook": r"notebook",
    "place medal": r"place medal",
    "mailbox": r"mailbox",
    "speaker": r"speaker (low|medium|high) volume|muted speaker",
    "banknote": r"banknote",
    "punctuation mark": r"(exclamation|question) mark",
    "pointing hand": r"index pointing",
    "sideways fist": r"facing fist",
    "flat hand": r"wards (pushing )?hand|palm (up|down) hand",
    "raised hand": r"^(thumbs|raised) ",
    "magnifying glass": r"magnifying glass",
    "three monkeys": r"-evil monkey",
    "lock": r"^(un)?locked",
    "cloud": r"cloud",
    "skyline": r"^sun(rise|set)|cityscape|bridge at night|night with stars",
    "battery": r"battery",
    "chart": r"^(bar )?chart\b",
    "pushpin": r"pushpin",
    "camera": r"camera( with flash)?$",
    "mobile phone": r"mobile phone",
    "umbrella": r"umbrella",
    "snowman": r"snowman",
    "card suit": r" suit$",
    "calendar": r"calendar",
    "tick or cross": r"check mark|check box|cross mark",
    "curly loop": r"curly loop",
    "bell": r"^bell\b",
    "fork and knife": r"fork and knife",
    "envelope": r"envelope",
    "tray": r"^(in|out)box tray$",
    "file folder": r"file folder",
    "speech bubble": r"(speech|thought|anger) (balloon|bubble)",
    "musical note": r"musical note",
    "beer mug": r"beer mug",
    "chick": r"chick$",
    "apple": r"apple$",
    "camel": r"camel$",
    "cat": r"\bcat$",
    "bird": r"\bbird$",
    "house": r"\bhouses?\b",
    "post office": r"post office",
    "drinking water": r"potable water",
    "player button": (
        r"^(fast|(next|last) track|play|reverse|pause|stop|record|eject|(up|down)wards|repeat|shuffle)\b.* button$"
    ),
    "brightness button": r"^(dim|bright) button$",
    "toilet sign": r"^(men|women)’s room$|^restroom$",
    "no …": r"^no (bicycles|smoking|littering|pedestrians|mobile phones|one under eighteen)$",
}

# Code points that differ only in the gender or age of the person drawn.
_SAME_PERSON = {
    "1F468": "1F9D1",  # man, woman → person
    "1F469": "1F9D1",
    "1F467": "1F466",  # girl, child → boy
    "1F9D2": "1F466",
    "1F475": "1F474",  # old woman, older person → old man
    "1F9D3": "1F474",
    "1F478": "1F934",  # princess, person with crown → prince
    "1FAC5": "1F934",
    "1F936": "1F385",  # Mrs. Claus → Santa Claus
    "1F57A": "1F483",  # man dancing → woman dancing
    "1FAC3": "1F930",  # pregnant man, person → pregnant woman
    "1FAC4": "1F930",
}
_MARKS = frozenset({"FE0F", "200D", "2640", "2642", "27A1"})  # presentation, joiner, gender, facing right

CLASSES: dict[str, str] = {
    "face-smiling": "smiley face",
    "face-affection": "smiley face",
    "face-tongue": "smiley face",
    "face-hand": "smiley face",
    "face-neutral-skeptical": "smiley face",
    "face-sleepy": "smiley face",
    "face-unwell": "smiley face",
    "face-hat": "smiley face",
    "face-glasses": "smiley face",
    "face-concerned": "smiley face",
    "face-negative": "smiley face",
    "heart": "heart",
    "hand-fingers-open": "hand",
    "hand-fingers-partial": "hand",
    "hand-fingers-closed": "hand",
    "hand-single-finger": "hand",
    "hand-prop": "hand",
    "hands": "hand",
    "body-parts": "body part",
    "person-gesture": "person gesturing",
    "person-role": "worker",
    "person-fantasy": "fantasy character",
    "person-sport": "person doing sport",
    "animal-mammal": "mammal",
    "animal-bird": "bird",
    "animal-bug": "insect",
    "animal-marine": "sea animal",
    "animal-reptile": "reptile",
    "plant-flower": "flower",
    "plant-other": "plant",
    "food-fruit": "fruit",
    "food-vegetable": "vegetable",
    "food-prepared": "meal",
    "food-asian": "Asian food",
    "food-sweet": "dessert",
    "drink": "drink",
    "dishware": "dishware",
    "place-building": "building",
    "place-religious": "building",
    "place-geographic": "landscape",
    "transport-ground": "land vehicle",
    "transport-water": "boat",
    "transport-air": "aircraft",
    "sky & weather": "weather",
    "time": "clock",
    "event": "celebration",
    "award-medal": "medal",
    "sport": "sports equipment",
    "game": "game",
    "clothing": "clothing",
    "musical-instrument": "musical instrument",
    "computer": "computer equipment",
    "book-paper": "book",
    "money": "money",
    "mail": "mail",
    "writing": "writing tool",
    "office": "office supplies",
    "tool": "tool",
    "science": "scientific instrument",
    "medical": "medical equipment",
    "household": "household item",
    "transport-sign": "sign",
    "warning": "warning sign",
    "religion": "religious symbol",
    "av-symbol": "media button",
    "flag": "flag",
}
"""Unicode's subcategory → class name of the zero-shot task; those that name no visible kind of thing carry none."""

FEWEST_PER_CLASS = 5
"""A class with fewer pictures in a split is left out of that split's zero-shot task."""


def concept(code: str, name: str, category: str, subcategory: str) -> str:
    """What a picture shows, equal for variants of one drawing (gender, direction, colour, phase, hour).

    Args:
        code: the emoji's code points, "1F468-200D-1F680".
        name: its name, "man astronaut".
        category: Unicode's category, "People & Body".
        subcategory: Unicode's subcategory, "person-role".
    """
    if subcategory in _ONE_CONCEPT or name.startswith("family"):
        return "family" if name.startswith("family") else subcategory
    for shown, pattern in _VARIANTS.items():
        if re.search(pattern, name):
            return shown
    if category == "People & Body":
        points = [_SAME_PERSON.get(point, point) for point in code.split("-") if point not in _MARKS]
        return "1F385" if points == ["1F9D1", "1F384"] else "-".join(points)  # Mx Claus → Santa Claus
    if category == "Animals & Nature":
        return name.removesuffix(" face")
    return name


def splits(concepts: Iterable[str]) -> dict[str, str]:
    """Concept → split, from a hash of the concept alone, so that a new picture moves no other one.

    Args:
        concepts: one entry per picture.
    """
    return {
        name: "pretrain" if pictures > LARGEST_FREE_CONCEPT else _drawn_split(name)
        for name, pictures in Counter(concepts).items()
    }


def _drawn_split(name: str) -> str:
    position = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
    for split, share in SHARES.items():
        position -= share
        if position < 0:
            return split
    return "test"


def kept_labels(subcategories: Mapping[str, str]) -> dict[str, str]:
    """The labels of one split: file name → class name, "" where the class is too small there or has no name.

    Args:
        subcategories: file name → subcategory, of one split.
    """
    classes = {file: CLASSES.get(subcategory, "") for file, subcategory in subcategories.items()}
    counts = Counter(classes.values())
    return {file: name if counts[name] >= FEWEST_PER_CLASS else "" for file, name in classes.items()}
