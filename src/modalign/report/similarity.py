"""What the report draws from features: similarity histograms, a shared 2-D projection and rank changes. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modalign.report.run_folder import Array, Features

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
ROUNDING = 1e-6
"""Cosines closer than this are equal: a float32 matrix product does not give equal rows the same bits."""


def unit(features: Array) -> Array:
    """Rows of length 1; zero rows stay zero.

    Args:
        features: N×d, raw.

    Returns:
        N×d, unit.
    """
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(norms, 1e-12), dtype=np.float32)


def numbered(values: tuple[str, ...]) -> Ints:
    """Equal strings → equal numbers."""
    return np.asarray(np.unique(np.array([value.strip() for value in values], dtype=object), return_inverse=True)[1])


@dataclass(frozen=True)
class Matches:
    """Which picture and caption belong together; a caption string shared by pictures belongs to all of them.

    Args:
        image_ids: N: equal numbers mean the same picture.
        caption_ids: M: equal numbers mean the same caption string.
        keys: sorted (caption id, image id) pairs that match, coded as caption_id · images + image_id.
    """

    image_ids: Ints
    caption_ids: Ints
    keys: Ints

    @classmethod
    def of(cls, features: Features) -> Matches:
        """The matches among the evaluation pairs."""
        image_ids, caption_ids = numbered(tuple(map(repr, features.paths))), numbered(features.captions)
        keys = caption_ids * _count(image_ids) + image_ids[features.image_of_text]
        return cls(image_ids, caption_ids, np.unique(keys))

    def matched(self, rows: Ints, captions: Ints) -> NDArray[np.bool_]:
        """Whether image row and caption, element by element, belong together."""
        keys = self.caption_ids[captions] * _count(self.image_ids) + self.image_ids[rows]
        return np.isin(keys, self.keys)


def _count(ids: Ints) -> int:
    return int(ids.max(initial=-1)) + 1


@dataclass(frozen=True)
class Histogram:
    """Cosine similarities of matched and unmatched pairs, counted in the same bins.

    Args:
        edges: bins + 1 values.
        matched: bins counts.
        unmatched: bins counts.
        matched_mean: mean cosine of the matched pairs.
        unmatched_mean: mean cosine of the unmatched pairs.
    """

    edges: Floats
    matched: Ints
    unmatched: Ints
    matched_mean: float
    unmatched_mean: float


def histograms(
    features: Features, *, bins: int = 48, max_pairs: int = 200_000, seed: int = 0
) -> tuple[Histogram, Histogram]:
    """Similarities before and after, of the same pairs, in the same bins.

    Args:
        features: raw features of the evaluation pairs.
        bins: how many bins.
        max_pairs: how many matched and, at most, how many random unmatched pairs are counted.
        seed: of the unmatched sample.

    Returns:
        The histograms before and after.
    """
    generator = np.random.default_rng(seed)
    matches = Matches.of(features)
    pictures, captions = len(features.paths), len(features.captions)
    own = np.arange(captions)
    if captions > max_pairs:
        own = np.sort(generator.choice(captions, max_pairs, replace=False))
    if pictures * captions <= max_pairs:
        rows, others = np.divmod(np.arange(pictures * captions), captions)
    else:
        rows = generator.integers(pictures, size=max_pairs)
        others = generator.integers(captions, size=max_pairs)
    apart = ~matches.matched(rows, others)
    rows, others = rows[apart], others[apart]
    values = [
        (_cosines(image, text, features.image_of_text[own], own), _cosines(image, text, rows, others))
        for image, text in (
            (unit(features.image_before), unit(features.text_before)),
            (unit(features.image_after), unit(features.text_after)),
        )
    ]
    everything = np.concatenate([part for pair in values for part in pair])
    edges = np.histogram_bin_edges(everything, bins=bins)
    before, after = (
        Histogram(
            np.asarray(edges, dtype=np.float64),
            np.histogram(matched, edges)[0].astype(np.int64),
            np.histogram(unmatched, edges)[0].astype(np.int64),
            float(matched.mean()) if len(matched) else float("nan"),
            float(unmatched.mean()) if len(unmatched) else float("nan"),
        )
        for matched, unmatched in values
    )
    return before, after


def _cosines(image: Array, text: Array, rows: Ints, captions: Ints, chunk: int = 16_384) -> Floats:
    parts = [
        np.einsum("nd,nd->n", image[rows[at : at + chunk]], text[captions[at : at + chunk]])
        for at in range(0, len(rows), chunk)
    ]
    return np.clip(np.concatenate(parts), -1, 1).astype(np.float64) if parts else np.zeros(0)


@dataclass(frozen=True)
class Plane:
    """Four sets of unit features seen in one plane, that of the first two principal components of their union.

    Args:
        image_before: N×2.
        text_before: M×2.
        image_after: N×2.
        text_after: M×2.
        explained: the two components' shares of the union's variance.
        apart: distance of the two centroids before and after, in all dimensions.
    """

    image_before: Floats
    text_before: Floats
    image_after: Floats
    text_after: Floats
    explained: tuple[float, float]
    apart: tuple[float, float]


def plane(features: Features) -> Plane:
    """PCA of unit features, fitted on the union of images and captions, before and after.

    Raises:
        ValueError: before and after differ in width, or there is nothing to project.
    """
    sets = [features.image_before, features.text_before, features.image_after, features.text_after]
    widths = {part.shape[1] for part in sets}
    if len(widths) != 1:
        raise ValueError(f"features of different widths ({', '.join(map(str, sorted(widths)))}) share no plane")
    units = [unit(part) for part in sets]
    union = np.concatenate(units)
    if min(union.shape) < 2:
        raise ValueError("fewer than two features span no plane")
    mean = union.mean(axis=0, dtype=np.float64)
    centred = union - mean.astype(np.float32)
    values, vectors = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    axes = vectors[:, ::-1][:, :2]
    # An eigenvector's sign is arbitrary; this choice keeps the picture the same from run to run.
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(2)])
    points = centred @ axes
    image_before, text_before, image_after, text_after = np.split(points, np.cumsum([len(part) for part in sets])[:-1])
    total = max(float(values.sum()), 1e-30)
    explained = (float(values[-1]) / total, float(values[-2]) / total)
    centres = [part.mean(axis=0, dtype=np.float64) for part in units]
    apart = (float(np.linalg.norm(centres[0] - centres[1])), float(np.linalg.norm(centres[2] - centres[3])))
    return Plane(image_before, text_before, image_after, text_after, explained, apart)


@dataclass(frozen=True)
class TextToImage:
    """Each caption as a query over the distinct pictures.

    Args:
        rank: M: 1 is the top; of a caption that several pictures share, the best of them. Pictures that score as
            high as the right one rank before it, so that constant features gain nothing.
        top: M: the image row that scores highest.
    """

    rank: Ints
    top: Ints


def text_to_image(image: Array, text: Array, matches: Matches, chunk: int = 512) -> TextToImage:
    """Ranks of the right picture for every caption.

    Args:
        image: N×d, raw.
        text: M×d, raw.
        matches: which belong together.
        chunk: captions compared at once.

    Returns:
        Rank and best picture of each caption.
    """
    distinct, first = np.unique(matches.image_ids, return_index=True)
    gallery = unit(image)[first]
    queries = unit(text)
    owners = matches.keys % len(distinct)  # sorted by caption id: those of one caption lie together
    starts = np.searchsorted(matches.keys, np.arange(_count(matches.caption_ids) + 1) * len(distinct))
    rank = np.zeros(len(queries), dtype=np.int64)
    top = np.zeros(len(queries), dtype=np.int64)
    for at in range(0, len(queries), chunk):
        scores = queries[at : at + chunk] @ gallery.T
        ids = matches.caption_ids[at : at + chunk]
        counts = starts[ids + 1] - starts[ids]
        offsets = np.cumsum(counts) - counts
        line = np.repeat(np.arange(len(ids)), counts)
        right = owners[np.arange(len(line)) + np.repeat(starts[ids] - offsets, counts)]
        best = np.maximum.reduceat(scores[line, right], offsets)
        top[at : at + chunk] = first[scores.argmax(axis=1)]
        scores[line, right] = -np.inf
        rank[at : at + chunk] = 1 + (scores >= best[:, None] - ROUNDING).sum(axis=1)
    return TextToImage(rank, top)


@dataclass(frozen=True)
class RankChanges:
    """How captions moved, and the ones that moved most.

    Args:
        before: ranks and best pictures before.
        after: ranks and best pictures after.
        improved: captions (flat positions) that rose furthest, furthest first.
        lost: captions that fell furthest, furthest first.
        pictures: how many distinct pictures were ranked.
    """

    before: TextToImage
    after: TextToImage
    improved: tuple[int, ...]
    lost: tuple[int, ...]
    pictures: int


def rank_changes(features: Features, *, examples: int = 10) -> RankChanges:
    """The captions whose picture moved most, in places: half of them improvements, half losses where there are enough.

    Each picture and each caption string appears at most once, so that one outlier does not fill the page.

    Args:
        features: raw features of the evaluation pairs.
        examples: how many captions to choose.

    Returns:
        All ranks, and the chosen captions.
    """
    matches = Matches.of(features)
    before = text_to_image(features.image_before, features.text_before, matches)
    after = text_to_image(features.image_after, features.text_after, matches)
    gained = before.rank - after.rank
    # Of equal changes the one that ends (or began) nearest the top says more.
    order = np.lexsort((np.minimum(before.rank, after.rank), -np.abs(gained)))
    order = order[gained[order] != 0]
    seen_pictures: set[int] = set()
    seen_captions: set[int] = set()
    improved: list[int] = []
    lost: list[int] = []
    for caption in map(int, order):
        picture = int(matches.image_ids[features.image_of_text[caption]])
        string = int(matches.caption_ids[caption])
        chosen = improved if gained[caption] > 0 else lost
        if picture in seen_pictures or string in seen_captions or len(chosen) == examples:
            continue
        chosen.append(caption)
        seen_pictures.add(picture)
        seen_captions.add(string)
        if len(improved) == len(lost) == examples:
            break
    rises = max(examples - examples // 2, examples - len(lost))
    improved = improved[:rises]
    lost = lost[: examples - len(improved)]
    return RankChanges(before, after, tuple(improved), tuple(lost), len(np.unique(matches.image_ids)))
