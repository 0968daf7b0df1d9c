"""Captions to words as the COCO caption evaluation cuts them, without Java.

The reference pipes captions through Stanford's PTBTokenizer 3.4.1 (`-preserveLines -lowerCase`) and then drops
punctuation. What of it can change a caption's words is restated here as one regular expression, tried from left to
right; docs/captioning.md has the measured differences.

Source: Chen et al., "Microsoft COCO Captions", arXiv 1504.00325, section 3.1; the Penn Treebank's tokenisation rules.
"""

from __future__ import annotations

import re

PUNCTUATION = frozenset(['"', "'", "’", "‘", "`", ".", "?", "!", ",", ":", ";"])
"""What the COCO evaluation drops, beside dashes and dots. Its list has -LRB- and its like too, which never match
lower-cased output: brackets stay, as the tokens "-lrb-" and "-rrb-"."""
LAST_OF_PLANE = "\uffff"
"""Java 3.4.1 drops what lies beyond it, emoji above all."""

BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
SPELLED = str.maketrans(
    {"“": '"', "”": '"', "«": '"', "»": '"', "–": "--", "—": "--", "…": "...", "\u00ad": ""}
    | {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "€": "$", "£": "#"}
)
ENTITIES = {"&quot;": '"', "&apos;": "'", "&lt;": "<", "&gt;": ">", "&amp;": "&"}

# What keeps its full stop wherever it stands; "no." does before a number only.
SHORT = (
    "mr mrs ms messrs dr drs prof rev gen col lt sgt capt gov sen rep hon maj adm st ft mt jr sr pvt bros "
    "vs etc inc ltd co corp ave blvd rd al jan feb mar apr jun jul aug sep sept oct nov dec"
)
CUT = {"cannot": 3, "gonna": 3, "gotta": 3, "wanna": 3, "lemme": 3, "gimme": 3, "'tis": 2, "'twas": 2, "y'all": 2}

_LETTER = r"[^\W\d_]"
_WORD = rf"{_LETTER}\w*(?:[-_./]\w+)*"
# Most special first: what an earlier rule takes, a later one never sees.
_RULES = rf"""
    (?P<web>(?:https?://|www\.)[^\s"()<>]*[^\s"()<>.,?!;:] | [\w.+-]+@[\w-]+(?:\.[\w-]+)+)
  | (?P<tag></?{_LETTER}[\w-]*\s*/?>)
  | (?P<initials>(?:\b{_LETTER}{{1,2}}\.)(?:{_LETTER}\.)+ | \b{_LETTER}\.(?!\w))
  | (?P<short>\b(?:{"|".join(SHORT.split())})\.(?!\w) | \bno\.(?=\s*\d))
  | (?P<number>(?<!\S)[-+]?(?:\d+(?:[.,:/]\d+)+|[.]\d+)(?:-\w+)* | \d+(?:[.,:/]\d+)+(?:-\w+)* | (?<!\S)[-+]\d+)
  | (?P<year>'\d\ds?\b)
  | (?P<cut>(?:{"|".join(CUT)})\b)
  | (?P<negated>{_LETTER}+(?=n['’]t\b)) | (?P<not>n['’]t\b)
  | (?P<clitic>['’](?:s|m|d|ll|re|ve)\b | ['’]n(?:['’]|\b))
  | (?P<company>\b{_LETTER}{{1,2}}&{_LETTER}{{1,2}}\b)
  | (?P<elided>(?:o|d|l|c|ma)['’]{_WORD})
  | (?P<word>{_WORD} | [@\#]{_LETTER}\w* | \d\w*(?:-\w+)*)
  | (?P<marks>[!?]{{2,}}) | (?P<dots>\.{{2,}}) | (?P<dashes>-+)
  | (?P<other>\S)
"""
_TOKEN = re.compile(_RULES, re.VERBOSE | re.IGNORECASE)


def tokenize(caption: str) -> list[str]:
    """The words of a caption, lower-cased, without punctuation.

    Args:
        caption: any text; line breaks count as spaces.

    Returns:
        Its tokens; none of an empty caption.

    Source: Chen et al., arXiv 1504.00325, section 3.1.
    """
    for entity, character in ENTITIES.items():
        caption = caption.replace(entity, character)
    tokens: list[str] = []
    for found in _TOKEN.finditer(caption.translate(SPELLED)):
        text, kind = found.group().lower(), found.lastgroup
        if kind == "cut":
            tokens += [text[: CUT[text]], text[CUT[text] :]]
        elif kind in ("clitic", "not"):
            tokens.append(text.replace("’", "'"))
        elif kind not in ("dots", "dashes") and text not in PUNCTUATION and text[0] <= LAST_OF_PLANE:
            tokens.append(BRACKETS.get(text, text))
    return tokens
