from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from modalign.gap import pairwise


def test_uniformity_of_two_opposite_points_counts_each_point_with_itself() -> None:
    image = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    text = torch.tensor([[-1.0, 0.0]], dtype=torch.float64)
    # Four ordered pairs: two of a point with itself (1) and two at squared distance 4 (e^−8).
    union = torch.cat([image, text])
    assert pairwise.uniformity(union, union).item() == pytest.approx((1 + math.exp(-8)) / 2, abs=1e-15)
    assert pairwise.alignment(image, text).item() == 4


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_uniformities_against_numpy_whatever_the_block(block: int) -> None:
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(2, 20, 5)) / 3
    kernel = lambda a, b: np.exp(-2 * ((a[:, None] - b[None]) ** 2).sum(-1))  # noqa: E731
    means = pairwise.kernel_means(torch.from_numpy(image), torch.from_numpy(text), block=block)
    np.testing.assert_allclose(means.image, kernel(image, image).mean(1), atol=1e-14)
    np.testing.assert_allclose(means.text, kernel(text, text).mean(1), atol=1e-14)
    np.testing.assert_allclose(means.image_to_text, kernel(image, text).mean(1), atol=1e-14)
    np.testing.assert_allclose(means.text_to_image, kernel(image, text).mean(0), atol=1e-14)
    np.testing.assert_allclose(means.pair, kernel(image, text).diagonal(), atol=1e-14)
    union = np.concatenate([image, text])
    assert means.joint.mean().item() == pytest.approx(kernel(union, union).mean(), abs=1e-14)
    cross = pairwise.uniformity(torch.from_numpy(image), torch.from_numpy(text)).item()
    assert cross == pytest.approx(kernel(image, text).mean(), abs=1e-14)
