"""Writes caption_reference.json: 500 made-up captions, their references, and what the reference implementation says.

    pip install pycocoevalcap==1.2        # and Java, for its tokeniser
    python tests/evaluation/data/make_caption_reference.py

The sentences are our own, put together from the word lists below, so nobody's licence applies. Nothing of
pycocoevalcap is kept but its output: tokenised captions, scores of each caption, scores of the whole.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

WHO = ["A man", "A young woman", "Two children", "The boy's dog", "An old fisherman", "A brown-and-white cow"]
WHO += ["Three people", "A little girl", "Dr. Smith", "A black cat", "Someone", "A group of cyclists"]
DOES = ["is riding a bike", "sits on a wooden bench", "can't reach the shelf", "holds a red umbrella", "is cooking"]
DOES += ["looks at the camera", "won't stop running", 'reads the sign "No Parking"', "eats half a pizza (cold)"]
DOES += ["throws a ball", "doesn't move", "plays rock'n'roll"]
WHERE = ["in the park", "near a café", "on the beach", "in front of a 20-story building", "next to a well-known bridge"]
WHERE += ["in the U.S.", "at 3:30 p.m.", "under the table", "by the river", "in a Zürich street", "for $5"]
WHERE += ["on 12,000 square feet of grass", "at St. John's"]
MORE = [
    "",
    "",
    "",
    ", smiling",
    ", while it rains",
    " -- slowly",
    "; the sky is blue",
    " and a bird watches",
    "... again",
]
END = ["", ".", ".", ".", "!", "?", " .", "!!"]


def sentence(rng: random.Random, parts: list[list[str]]) -> str:
    """One description: each part is one of the scene's or, one time in three, another."""
    lists = [WHO, DOES, WHERE, MORE]
    chosen = [rng.choice(own if rng.random() < 0.67 else every) for own, every in zip(parts, lists, strict=True)]
    return f"{chosen[0]} {chosen[1]} {chosen[2]}{chosen[3]}{rng.choice(END)}"


def candidate(rng: random.Random, references: list[str]) -> str:
    """A caption that is wrong in one of the ways captions are."""
    words = rng.choice(references).split()
    way = rng.randrange(8)
    if way == 0:
        return " ".join(words)
    if way == 1:
        return " ".join(word for word in words if rng.random() < 0.8)
    if way == 2:
        first, second = rng.sample(range(len(words)), 2)
        words[first], words[second] = words[second], words[first]
    if way == 3:
        return " ".join(words[: rng.randrange(len(words))])
    if way == 4:
        return " ".join([*words, *words[-3:], words[-1]])
    if way == 5:
        words[rng.randrange(len(words))] = rng.choice(["zebra", "Größe", "it's", "1/2", "purple"])
    if way == 6:
        return sentence(rng, [WHO, DOES, WHERE, MORE])
    return " ".join(words).lower().rstrip(".!? ")


def main() -> None:
    """Makes the captions, runs the reference implementation, writes both."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    rng = random.Random(0)
    references: dict[int, list[str]] = {}
    candidates: dict[int, str] = {}
    for number in range(500):
        scene = [[rng.choice(words)] for words in (WHO, DOES, WHERE, MORE)]
        references[number] = [sentence(rng, scene) for _ in range(rng.randint(1, 4))]
        candidates[number] = candidate(rng, references[number])
    cut = PTBTokenizer()
    gts = cut.tokenize({k: [{"caption": c} for c in texts] for k, texts in references.items()})
    res = cut.tokenize({k: [{"caption": text}] for k, text in candidates.items()})
    bleu, _ = Bleu(4).compute_score(gts, res, verbose=0)
    cider, each_cider = Cider().compute_score(gts, res)
    rouge, each_rouge = Rouge().compute_score(gts, res)
    captions = [
        {
            "candidate": candidates[k],
            "references": references[k],
            "candidate_tokens": res[k][0],
            "reference_tokens": gts[k],
            "cider_d": float(each_cider[k]),
            "rouge_l": float(each_rouge[k]),
        }
        for k in range(500)
    ]
    scores = {f"bleu_{n}": value for n, value in enumerate(bleu, 1)} | {
        "cider_d": float(cider),
        "rouge_l": float(rouge),
    }
    head = json.dumps({"made_with": "pycocoevalcap 1.2, Stanford PTBTokenizer 3.4.1", "scores": scores})[:-1]
    lines = ",\n".join(json.dumps(caption, ensure_ascii=False) for caption in captions)
    target = Path(__file__).with_name("caption_reference.json")
    target.write_text(f'{head}, "captions": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
