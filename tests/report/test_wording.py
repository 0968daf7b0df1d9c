from __future__ import annotations

import pytest

from modalign.report.wording import clipped, duration, ends, in_words, memory, number, points, signed


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.29, "1.290"),
        (0.48312, "0.4831"),
        (61.7, "61.70"),
        (123456.0, "123,456"),
        (9.12e-4, "9.12e−04"),
        (0.0, "0"),
        (float("nan"), "–"),
    ],
)
def test_four_digits_with_their_trailing_zeros(value: float, text: str) -> None:
    assert number(value) == text


def test_a_difference_is_written_in_the_digits_of_what_differs() -> None:
    assert signed(0.8087 - 0.8159, 0.8159) == "−0.0072"
    assert signed(0.00232, 1.0) == "+0.002"
    assert signed(-4.24e-4, 9.12e-4) == "−4.24e−04"


def test_names_of_clusterings_are_read_whole() -> None:
    names = ("clustering.ari", "similarity", "v_measure")
    assert [in_words(name) for name in names] == ["clustering.ARI", "similarity", "V-measure"]


def test_an_interval_leaves_the_unit_to_its_value() -> None:
    assert ends((0.0123, 0.02)) == "1.23 … 2.00" and ends((-0.01, 0.0), sign="+") == "−1.00 … +0.00"
    assert ends((-9.0, 6.4), "rank", "+") == "−9 … +6.4" and ends((0.34744, 0.36451), "score") == "0.347 … 0.365"


def test_points_are_hundredths_and_always_signed() -> None:
    assert [points(share) for share in (0.0123, -0.0123, 0.0)] == ["+1.23", "−1.23", "+0.00"]


def test_metric_names_in_words() -> None:
    assert in_words("image_to_text_r10") == "image → text R@10"
    assert in_words("mean_per_class_recall") == "mean per-class recall"
    assert in_words("effective_rank_image") == "effective rank image"


def test_time_and_memory_for_people() -> None:
    assert [duration(seconds) for seconds in (3.25, 59.99, 119.6, 3_661)] == [
        "3.2 s",
        "60.0 s",
        "2 min 00 s",
        "1 h 01 min",
    ]
    assert [memory(size) for size in (512 * 2**20, 3 * 2**29)] == ["512 MiB", "1.50 GiB"]


def test_a_long_caption_is_cut_and_put_on_one_line() -> None:
    assert clipped("a\n  b\tc") == "a b c"
    assert len(clipped("word " * 1000)) <= 220
