"""CIDEr-D, BLEU and ROUGE-L: by hand, against an oracle, and against stored values of the reference implementation."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modalign.errors import DataError
from modalign.evaluation.caption_metrics import BleuSums, caption_scores, cider_d, rouge_l, tokenize
from modalign.evaluation.statistics import bootstrap_interval, paired_bootstrap

STORED = Path(__file__).parent / "data" / "caption_reference.json"


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    return json.loads(STORED.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def words(stored: dict[str, Any]) -> tuple[list[list[str]], list[list[list[str]]]]:
    """The reference's own tokens."""
    captions = stored["captions"]
    return (
        [caption["candidate_tokens"].split() for caption in captions],
        [[reference.split() for reference in caption["reference_tokens"]] for caption in captions],
    )


class TestAgainstTheReferenceImplementation:
    def test_cider_and_rouge_of_every_caption(self, stored: dict[str, Any], words: Any) -> None:
        assert len(stored["captions"]) == 500
        for name, ours in (("cider_d", cider_d(*words)), ("rouge_l", rouge_l(*words))):
            np.testing.assert_allclose(ours, [caption[name] for caption in stored["captions"]], rtol=0, atol=1e-6)
            assert ours.mean() == pytest.approx(stored["scores"][name], abs=1e-6)

    def test_bleu_of_the_whole(self, stored: dict[str, Any], words: Any) -> None:
        expected = [stored["scores"][f"bleu_{n}"] for n in (1, 2, 3, 4)]
        np.testing.assert_allclose(BleuSums.of(*words).scores(), expected, rtol=0, atol=1e-6)

    def test_our_tokeniser_cuts_all_of_them_alike(self, stored: dict[str, Any]) -> None:
        for caption in stored["captions"]:
            assert " ".join(tokenize(caption["candidate"])) == caption["candidate_tokens"]
            assert [" ".join(tokenize(text)) for text in caption["references"]] == caption["reference_tokens"]


class TestTokenizer:
    # What Stanford's PTBTokenizer 3.4.1 (-lowerCase) and the COCO list of punctuation make of these.
    @pytest.mark.parametrize(
        ("caption", "expected"),
        [
            ("A man's dog can't sit.", "a man 's dog ca n't sit"),
            ("It’s the dogs’ “toy” — isn’t it…", "it 's the dogs toy is n't it"),
            ("The U.S. flag at 3:30 p.m. on St. Jean", "the u.s. flag at 3:30 p.m. on st. jean"),
            ("A dog runs. A cat sits.", "a dog runs a cat sits"),
            ("a hat.The dog", "a hat.the dog"),
            ("(small) [dog]", "-lrb- small -rrb- -lsb- dog -rsb-"),
            ("well-known t-shirt -- a - b", "well-known t-shirt a b"),
            ("$5 £6 ½ cup 1/2 12,000 50%", "$ 5 # 6 1/2 cup 1/2 12,000 50 %"),
            ("cannot gonna 'tis rock'n'roll o'clock", "can not gon na 't is rock 'n' roll o'clock"),
            ("no. 5 is no.", "no. 5 is no"),
            ("the 1990's and '90s", "the 1990 's and '90s"),
            ("AT&T &amp; rock&roll", "at&t & rock & roll"),
            ("hello!!! what?!", "hello !!! what ?!"),
            ("😀 naïve café 日本語 Größe", "naïve café 日本語 größe"),
            ("two  spaces\ttab\nline", "two spaces tab line"),
            ("... !", ""),
            ("", ""),
        ],
    )
    def test_cuts_as_the_reference(self, caption: str, expected: str) -> None:
        assert tokenize(caption) == expected.split()


class TestCiderD:
    def test_a_perfect_caption_of_words_that_occur_nowhere_else_scores_ten(self) -> None:
        said = [list("abcde"), list("vwxyz")]
        np.testing.assert_allclose(cider_d(said, [[words] for words in said]), [10, 10])

    def test_one_caption_by_hand(self) -> None:
        # "a b" against "a c", df 1 of 2 images for each: only the unigram a is shared, cosine 1/2, over n = 1…4.
        scores = cider_d([["a", "b"], ["q"]], [[["a", "c"]], [["q"]]])
        np.testing.assert_allclose(scores, [10 * 0.5 / 4, 10 * 1 / 4])

    def test_words_of_every_image_count_nothing(self) -> None:
        assert cider_d([["a"], ["a"]], [[["a"]], [["a"]]]).tolist() == [0, 0]

    def test_repetition_is_clipped_and_length_damped(self) -> None:
        # "a a a" against "a": min(3g, g)·g / (3g·g) = 1/3; two bigrams against none: exp(−4/72)
        scores = cider_d([["a", "a", "a"], ["z"]], [[["a"]], [["z"]]])
        assert scores[0] == pytest.approx(10 / 4 / 3 * math.exp(-4 / 72))

    def test_a_single_image_scores_nothing(self) -> None:
        assert cider_d([["a", "b"]], [[["a", "b"]]]).tolist() == [0]

    def test_dense_oracle(self) -> None:
        said, meant = _random_captions(40)
        np.testing.assert_allclose(cider_d(said, meant), _dense_cider(said, meant), atol=1e-12)


class TestBleu:
    def test_one_corpus_by_hand(self) -> None:
        # "the the the" has at most two "the" in a reference: 2/3; no bigram "the the" there
        sums = BleuSums.of([["the", "the", "the"]], [[["the", "cat", "the"], ["the"]]])
        assert sums.scores()[0] == pytest.approx(2 / 3)
        assert sums.scores()[1] == pytest.approx(0, abs=1e-6)

    def test_the_nearest_reference_counts_and_of_two_as_near_the_shorter(self) -> None:
        table = BleuSums.of([["a"] * 4], [[["b"] * 6, ["b"] * 3, ["b"] * 5]]).table
        assert table[0, -2:].tolist() == [4, 3]

    def test_short_captions_pay(self) -> None:
        assert BleuSums.of([["a", "b"]], [[["a", "b", "c", "d"]]]).scores()[0] == pytest.approx(math.exp(1 - 4 / 2))

    def test_sums_of_the_corpus_not_means_of_captions(self) -> None:
        sums = BleuSums.of([["a"], ["x", "y", "z"]], [[["a"]], [["p", "q", "r"]]])
        assert sums.scores()[0] == pytest.approx(1 / 4)

    def test_contributions_are_derivatives(self) -> None:
        said, meant = _random_captions(30)
        sums = BleuSums.of(said, meant)
        contributions = sums.contributions()
        np.testing.assert_allclose(contributions.mean(0), sums.scores(), atol=1e-12)
        weights, step = np.ones(30), 1e-6
        for caption in (0, 7, 29):  # d/dε of BLEU with weight (1−ε)·1/N everywhere and ε more on one caption
            tilted = weights * (1 - step)
            tilted[caption] += 30 * step
            moved = BleuSums((sums.table * tilted[:, None]).sum(0, keepdims=True)).scores()
            slope = (moved - sums.scores()) / step
            np.testing.assert_allclose(contributions[caption] - sums.scores(), slope, rtol=1e-3, atol=1e-4)

    def test_bootstrap_of_contributions_is_that_of_the_corpus(self, words: Any) -> None:
        sums = BleuSums.of(*words)
        drawn = np.quantile(sums.resampled(4000, 1), [0.025, 0.975], axis=0)
        for order, moved in enumerate(sums.contributions().T):
            interval = bootstrap_interval(moved, resamples=4000)
            np.testing.assert_allclose(interval, drawn[:, order], atol=0.003)

    def test_paired_bootstrap_of_contributions_is_that_of_the_corpora(self, words: Any) -> None:
        said, meant = words
        worse = [caption[:-1] if number % 3 else caption for number, caption in enumerate(said)]
        before, after = BleuSums.of(said, meant), BleuSums.of(worse, meant)
        drawn = after.resampled(4000, 2)[:, 3] - before.resampled(4000, 2)[:, 3]
        found = paired_bootstrap(before.contributions()[:, 3], after.contributions()[:, 3], resamples=4000)
        assert found.estimate == pytest.approx(after.scores()[3] - before.scores()[3], abs=1e-12)
        np.testing.assert_allclose([found.low, found.high], np.quantile(drawn, [0.025, 0.975]), atol=0.002)
        assert found.standard_error == pytest.approx(drawn.std(), rel=0.1)


class TestRouge:
    def test_by_hand(self) -> None:
        # lcs("a b c d", "a c d e f") = 3: P = 3/4, R = 3/5
        expected = (1 + 1.44) * 0.75 * 0.6 / (0.6 + 1.44 * 0.75)
        assert rouge_l([list("abcd")], [[list("acdef")]])[0] == pytest.approx(expected)

    def test_precision_and_recall_may_come_from_different_references(self) -> None:
        # P from the long reference (2/2), R from the short one (1/1)
        assert rouge_l([list("ab")], [[list("axbyz"), list("a")]])[0] == pytest.approx(1)

    def test_nothing_in_common(self) -> None:
        assert rouge_l([["a"], []], [[["b"]], [["b"], []]]).tolist() == [0, 0]


class TestCaptionScores:
    def test_empty_captions_score_nothing_and_break_nothing(self) -> None:
        scores = caption_scores(["", "..."], [["a dog"], ["a cat", "!"]])
        assert scores.cider_d.tolist() == [0, 0] and scores.rouge_l.tolist() == [0, 0]
        assert np.all(scores.bleu.scores() < 1e-6) and np.isfinite(scores.bleu.contributions()).all()

    def test_the_order_of_captions_and_references_does_not_matter(self, stored: dict[str, Any]) -> None:
        captions = stored["captions"][:60]
        turned = random.Random(0).sample(captions, 60)
        first, second = (
            caption_scores([c["candidate"] for c in part], [c["references"][:: 1 - 2 * flip] for c in part])
            for flip, part in enumerate((captions, turned))
        )
        places = [captions.index(caption) for caption in turned]
        np.testing.assert_allclose(first.cider_d[places], second.cider_d, atol=1e-12)
        np.testing.assert_allclose(first.rouge_l[places], second.rouge_l, atol=1e-12)
        np.testing.assert_allclose(first.bleu.scores(), second.bleu.scores(), atol=1e-12)

    @pytest.mark.parametrize(("candidates", "references"), [([], []), (["a"], []), (["a"], [[]])])
    def test_refuses_what_cannot_be_scored(self, candidates: list[str], references: list[list[str]]) -> None:
        with pytest.raises(DataError, match=r"pass one list a caption|has no reference"):
            caption_scores(candidates, references)


def _random_captions(count: int) -> tuple[list[list[str]], list[list[list[str]]]]:
    rng = random.Random(3)

    def say() -> list[str]:
        return [rng.choice("abcdefg") for _ in range(rng.randrange(1, 9))]

    return [say() for _ in range(count)], [[say() for _ in range(rng.randrange(1, 4))] for _ in range(count)]


def _dense_cider(said: list[list[str]], meant: list[list[list[str]]]) -> list[float]:
    """CIDEr-D on dense vectors, one n after the other."""
    scores = np.zeros(len(said))
    for n in (1, 2, 3, 4):

        def grams(words: list[str], n: int = n) -> list[tuple[str, ...]]:
            return list(zip(*(words[k:] for k in range(n)), strict=False))

        every = sorted({g for texts in [said, *meant] for words in texts for g in grams(words)})
        place = {g: k for k, g in enumerate(every)}
        df = np.zeros(len(every))
        for of_image in meant:
            for g in {g for words in of_image for g in grams(words)}:
                df[place[g]] += 1

        def vector(words: list[str], grams: Any = grams, place: Any = place, df: Any = df) -> np.ndarray:
            counts = np.zeros(len(place))
            for g, k in Counter(grams(words)).items():
                counts[place[g]] = k
            return counts * np.log(len(said) / np.maximum(1, df))

        for number, (words, of_image) in enumerate(zip(said, meant, strict=True)):
            for reference in of_image:
                a, b = vector(words), vector(reference)
                norm = np.linalg.norm(a) * np.linalg.norm(b)
                delta = len(words) - len(reference)  # of words, here equal to that of bigrams: no caption is empty
                if norm > 0:
                    cosine = np.minimum(a, b) @ b / norm
                    scores[number] += 10 / 4 / len(of_image) * cosine * np.exp(-(delta**2) / 72)
    return list(scores)
