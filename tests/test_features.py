from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modalign import features
from modalign.data.images import decode
from modalign.errors import DataError
from tests.training.toy import ToyEncoder, toy_pairs


def test_each_distinct_picture_is_encoded_once_and_rows_follow_the_paths(tmp_path: Path) -> None:
    pairs = toy_pairs(tmp_path, n=10)  # rows 0 and 1 are one picture
    model = ToyEncoder(dtype=torch.float64)
    done = features.image_features(model, pairs.paths, list(pairs.wheres), batch_size=4)
    assert model.image_calls == 9
    assert done.kept.tolist() == list(range(10)) and done.bad == []
    pixels = torch.stack([model.preprocess(decode(path)) for path in pairs.paths]).double()
    torch.testing.assert_close(done.features, model.encode_image(pixels).detach(), rtol=1e-12, atol=0)
    trunk = features.image_features(model, pairs.paths, list(pairs.wheres), part="trunk")
    torch.testing.assert_close(features.project(model, "image", trunk.features), done.features, rtol=1e-12, atol=0)


def test_bad_pictures_are_left_out_up_to_the_limit_and_named_beyond_it(tmp_path: Path) -> None:
    pairs = toy_pairs(tmp_path, n=10)
    pairs.paths[3].write_bytes(b"")
    pairs.paths[7].unlink()
    model = ToyEncoder()
    wheres = list(pairs.wheres)
    done = features.image_features(model, pairs.paths, wheres, max_bad=2, batch_size=3)
    assert done.kept.tolist() == [0, 1, 2, 4, 5, 6, 8, 9] and len(done.features) == 8
    assert [row.where for row in done.bad] == ["list:4", "list:8"]
    kept, bad = features.readable(pairs.paths, wheres, max_bad=2)
    assert kept.tolist() == done.kept.tolist() and bad == done.bad
    for call in (features.image_features, lambda _, *a, **k: features.readable(*a, **k)):
        with pytest.raises(DataError, match=r"003\.png \(list:4\).*007\.png \(list:8\)"):
            call(model, pairs.paths, wheres, max_bad=1)


def test_captions_are_encoded_once_each_whatever_their_order_and_length() -> None:
    model = ToyEncoder(dtype=torch.float64)
    captions = ["a red cat", "b", "a red cat", "", "a much longer caption"]
    rows = features.text_features(model, captions, batch_size=2)
    assert model.text_calls == 4
    torch.testing.assert_close(rows, model.encode_text(model.tokenize(captions)).detach(), rtol=1e-12, atol=0)
    assert features.text_features(model, []).shape == (0, 6)


def test_a_memo_serves_models_that_share_the_trunk(tmp_path: Path) -> None:
    pairs = toy_pairs(tmp_path, n=8)
    memo, first, second = features.TrunkMemo(), ToyEncoder(), ToyEncoder()
    with torch.no_grad():
        second.module.visual["proj"].weight.mul_(2)
    wheres = list(pairs.wheres)
    features.image_features(first, pairs.paths[:5], wheres[:5], memo=memo)
    features.image_features(second, pairs.paths, wheres, memo=memo)
    assert (first.image_calls, second.image_calls) == (4, 3)
    again = features.image_features(second, pairs.paths, wheres, memo=memo).features
    assert second.image_calls == 3
    plain = features.image_features(second, pairs.paths, wheres).features
    torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-6)
