"""Numbers and names as the page writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence

WORDS = {
    "acc1": "acc@1",
    "acc5": "acc@5",
    "mean_per_class_recall": "mean per-class recall",
    "image_to_text": "image → text",
    "text_to_image": "text → image",
    "zero_shot": "zero-shot",
    "frechet": "Fréchet",
    "symmetric_kl": "symmetric KL",
    "mmd_squared": "MMD²",
    "wasserstein": "Wasserstein",
    "knn": "k-NN",
    "_map": " mAP",
}
WHOLE = {"ari": "ARI", "nmi": "NMI", "v_measure": "V-measure"}
"""Words that others hold as well, such as similarity."""


def in_words(name: str) -> str:
    """`image_to_text_r1` → `image → text R@1`."""
    task, dot, metric = name.rpartition(".")
    name = task + dot + WHOLE.get(metric, metric)
    for key, words in WORDS.items():
        name = name.replace(key, words)
    head, _, tail = name.rpartition("_")
    if head and tail[:1] == "r" and tail[1:].isdigit():
        name = f"{head} R@{tail[1:]}"
    return name.replace("_", " ")


def percent(value: float, unit: str = "share") -> str:
    """0.0123 → `1.23`; what is no share as a number with its unit, such as `3 rank`."""
    return f"{100 * value:.2f}" if unit == "share" else f"{value:.4g} {unit}".replace("-", "−")


def points(value: float, unit: str = "share") -> str:
    """0.0123 → `+1.23`: a difference of shares, in points; of anything else, in its unit."""
    return (f"{100 * value:+.2f}" if unit == "share" else f"{value:+.4g} {unit}").replace("-", "−")


def ends(interval: Sequence[float], unit: str = "share", sign: str = "") -> str:
    """(0.01, 0.03) → `1.00 … 3.00`; of anything else without its unit, which the value above says."""
    low, high = (f"{100 * end:{sign}.2f}" if unit == "share" else f"{end:{sign}.3g}" for end in interval)
    return f"{low} … {high}".replace("-", "−")


def tolerated(value: float, unit: str = "share") -> str:
    """0.01 → `1`: a change for the worse that is accepted, in points; of anything else, in its unit."""
    return f"{100 * value:g}" if unit == "share" else f"{value:g} {unit}"


def number(value: float, scale: float | None = None) -> str:
    """A value in four significant digits, zeros at the end kept so that columns line up.

    Args:
        value: what is written.
        scale: the size whose digits count; of a difference, the size of what differs. None = the value's own.
    """
    size = abs(value if scale is None else scale)
    if not math.isfinite(value) or not math.isfinite(size):
        return "–"
    if size == 0 or 1e-3 <= size < 1e4:
        text = f"{value:,.{3 - math.floor(math.log10(size)) if size else 0}f}"
    else:
        text = f"{value:,.0f}" if 1e4 <= size < 1e7 else f"{value:.2e}"
    return text.replace("-", "−")


def signed(value: float, scale: float | None = None) -> str:
    """A difference as `number` writes it, its sign always shown."""
    return f"+{number(value, scale)}" if value > 0 else number(value, scale)


def duration(seconds: float) -> str:
    """Wall time for people."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def memory(amount: float) -> str:
    """Bytes for people."""
    return f"{amount / 2**30:.2f} GiB" if amount >= 2**30 else f"{amount / 2**20:.0f} MiB"


def clipped(text: str, most: int = 220) -> str:
    """A text on one line, of at most so many characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
