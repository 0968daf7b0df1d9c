"""What every adapter must keep, on each of them."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import pytest
import torch

from modalign.errors import OutputError
from modalign.models import DualEncoder, load
from modalign.models.folder import whole_folder
from tests.models.conftest import CAPTIONS


def pixels(rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_a_projection_over_a_trunk_is_the_feature_bit_for_bit(model: DualEncoder) -> None:
    tokens = model.tokenize(CAPTIONS)
    with torch.no_grad():
        image, text = model.encode_image(pixels()), model.encode_text(tokens)
        assert torch.equal(model.project_image(model.image_trunk(pixels())), image)
        assert torch.equal(model.project_text(model.text_trunk(tokens)), text)
    assert image.shape == (3, model.embed_dim) and text.shape == (5, model.embed_dim)
    assert model.image_trunk(pixels()).shape[1] != 32 or model.text_trunk(tokens).shape[1] == 32  # not projected


def test_gradient_of_a_projection_alone(model: DualEncoder) -> None:
    """Through stored trunk outputs exactly the named projection parameters receive one: the whole tower's own."""
    parameters = dict(model.module.named_parameters())
    for tower in ("text",) if model.logit_bias is not None else ("image", "text"):  # SigLIP projects text alone
        x = pixels() if tower == "image" else model.tokenize(CAPTIONS)
        trunk = model.image_trunk if tower == "image" else model.text_trunk
        project = model.project_image if tower == "image" else model.project_text
        whole = model.encode_image if tower == "image" else model.encode_text
        names = model.projection_names(tower)  # type: ignore[arg-type]
        assert {model.tower_of(name) for name in names} == {tower}
        expected = torch.autograd.grad(whole(x).square().sum(), [parameters[name] for name in names])
        project(trunk(x).detach()).square().sum().backward()
        assert [name for name, p in parameters.items() if p.grad is not None] == names
        for name, gradient in zip(names, expected, strict=True):
            assert torch.allclose(parameters[name].grad, gradient, rtol=1e-5)  # type: ignore[arg-type]
        model.module.zero_grad()


def test_a_row_does_not_depend_on_its_batch(model: DualEncoder) -> None:
    """Captions of mixed length, one by one and together."""
    tokens = model.tokenize(CAPTIONS)
    with torch.no_grad():
        together = model.encode_text(tokens)
        alone = torch.cat([model.encode_text(row[None]) for row in tokens])
    assert float((together - alone).norm(dim=1).max() / together.norm(dim=1).min()) < 2e-6


def test_precision(model: DualEncoder) -> None:
    """float64 stays and is finer; half precision comes out as float32."""
    tokens = model.tokenize(CAPTIONS)
    single = model.encode_image(pixels()), model.encode_text(tokens)
    model.to("cpu", torch.float64)
    double = model.encode_image(pixels()), model.encode_text(tokens)
    model.to("cpu", torch.bfloat16)
    half = model.encode_image(pixels()), model.encode_text(tokens)
    for s, d, h in zip(single, double, half, strict=True):
        assert (s.dtype, d.dtype, h.dtype) == (torch.float32, torch.float64, torch.float32)
        assert torch.allclose(s.double(), d, rtol=1e-4, atol=1e-5)
        assert torch.allclose(h, s, rtol=0.2, atol=0.1)


def test_towers_stay_in_eval(model: DualEncoder) -> None:
    with torch.no_grad():
        expected = model.encode_image(pixels()), model.project_image(model.image_trunk(pixels()))
        statistics = copy.deepcopy(dict(model.module.named_buffers()))
        model.module.train()
        assert torch.equal(model.encode_image(pixels()), expected[0]) and not model.module.training
        model.module.train()
        assert torch.equal(model.project_image(model.image_trunk(pixels())), expected[1])
    for name, buffer in model.module.named_buffers():
        assert torch.equal(buffer, statistics[name])


def test_the_frozen_copy_shares_nothing_that_trains(model: DualEncoder) -> None:
    teacher = model.frozen_copy()
    before = teacher.encode_image(pixels())
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.add_(1)
    assert torch.equal(teacher.encode_image(pixels()), before)
    assert not any(p.requires_grad for p in teacher.module.parameters())
    assert all(p.requires_grad for p in model.module.parameters())


def test_fingerprint_sees_every_weight(model: DualEncoder) -> None:
    base = model.fingerprint
    assert base == model.fingerprint and len(base) == 64
    seen = {base}
    for _, tensor in model.module.state_dict().items():
        with torch.no_grad():
            tensor.view(-1)[-1] += 1
        seen.add(model.fingerprint)
        if len(seen) == 6:
            break
    assert len(seen) == 6


def test_using_a_model_does_not_change_its_fingerprint(model: DualEncoder) -> None:
    base = model.fingerprint
    model.encode_text(model.tokenize(["a red cat", "dog"]))
    model.tokenize(["dog"] * 3)
    assert model.fingerprint == base


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saved_and_loaded_elsewhere_is_the_same(model: DualEncoder, dtype: torch.dtype, tmp_path: Path) -> None:
    """Bit for bit; also from a folder that was moved, and saved once more from there."""
    model.to("cpu", dtype)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    model.save(tmp_path / "a" / "model")
    (tmp_path / "a").rename(tmp_path / "b")
    first = load(tmp_path / "b" / "model")
    first.save(tmp_path / "c")
    second = load(str(tmp_path / "c"))
    tokens = model.tokenize(CAPTIONS)
    for again in (first, second):
        assert again.fingerprint == model.fingerprint
        assert again.logit_scale == model.logit_scale
        assert torch.equal(again.tokenize(CAPTIONS), tokens)
        with torch.no_grad():
            assert torch.equal(again.encode_image(pixels()), model.encode_image(pixels()))
            assert torch.equal(again.encode_text(tokens), model.encode_text(tokens))


def test_what_is_saved(model: DualEncoder, tmp_path: Path) -> None:
    model.save(tmp_path / "m")
    assert {path.suffix for path in (tmp_path / "m").iterdir()} <= {".safetensors", ".json", ".txt", ".jinja", ".model"}
    assert list(tmp_path.iterdir()) == [tmp_path / "m"]  # nothing temporary is left
    record = json.loads((tmp_path / "m" / "modalign.json").read_text())
    assert record["fingerprint"] == model.fingerprint and record["family"] == model.family
    assert record["spec"] == model.spec and record["versions"]["torch"] in torch.__version__


def test_saved_files_follow_the_umask(model: DualEncoder, tmp_path: Path) -> None:
    """safetensors alone would write for the owner alone."""
    before = os.umask(0o027)
    try:
        model.save(tmp_path / "m")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "m").rglob("*") if path.is_file()} == {0o640}


def test_a_save_that_fails_leaves_the_old_one(
    model: DualEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save(tmp_path / "m")
    before = model.fingerprint
    with torch.no_grad():
        next(model.module.parameters()).add_(1)
    with monkeypatch.context() as patch:
        patch.setattr("modalign.models.dual_encoder.write_record", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            model.save(tmp_path / "m")
    assert load(tmp_path / "m").fingerprint == before and list(tmp_path.iterdir()) == [tmp_path / "m"]
    model.save(tmp_path / "m")
    assert load(tmp_path / "m").fingerprint == model.fingerprint != before


def test_a_place_that_cannot_be_written(model: DualEncoder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "m"):
        with pytest.raises(OutputError, match="another place"):
            model.save(place)


def test_weights_that_cannot_be_written_are_told_in_a_line_and_leave_nothing(tmp_path: Path) -> None:
    """The libraries write weights through safetensors, which has an error of its own."""
    from safetensors.torch import save_file

    with (
        pytest.raises(OutputError, match=r"cannot write .*model: .*free space") as told,
        whole_folder(tmp_path / "model"),
    ):
        save_file({"a": torch.zeros(1000)}, tmp_path / "nowhere" / "a.safetensors")
    assert "\n" not in str(told.value) and not list(tmp_path.iterdir())
