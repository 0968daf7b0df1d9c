"""`<base>+visual@<file>`: the shapes in which image towers are published, over open_clip's and transformers' models."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import modalign
from modalign.errors import ModelError
from modalign.exporting.hugging_face import to_transformers
from modalign.models import DualEncoder, load
from modalign.models.open_clip import OpenClip
from modalign.models.tower_file import split_tower
from tests import tiny
from tests.models.conftest import CAPTIONS


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> OpenClip:
    """Another model of the base's architecture: whose tower it is."""
    model = load(tiny.tiny_open_clip(tmp_path_factory.mktemp("other") / "m", seed=1))
    assert isinstance(model, OpenClip)
    return model


def pixels() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def bare(model: DualEncoder) -> dict[str, Tensor]:
    state: dict[str, Tensor] = model.module.visual.state_dict()
    return state


def refusal(spec: str | Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(spec)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "visual.",
        "module.",
        "module.visual.",
        "model.visual.",
        "visual.module.",
        "clip.visual.",
        "clip_model.visual.",
    ],
)
@pytest.mark.parametrize("nested", [None, "state_dict", "model", "model_state_dict"])
def test_names_and_nesting(
    folders: dict[str, Path], other: OpenClip, prefix: str, nested: str | None, tmp_path: Path
) -> None:
    state = {prefix + name: tensor for name, tensor in bare(other).items()}
    torch.save({nested: state, "epoch": 1} if nested else state | {"epoch": 1}, tmp_path / "t.pt")
    base = load(folders["clip"])
    model = load(f"{folders['clip']}+visual@{tmp_path / 't.pt'}")
    tokens = model.tokenize(CAPTIONS)
    with torch.no_grad():
        assert torch.equal(model.encode_image(pixels()), other.encode_image(pixels()))
        assert torch.equal(model.encode_text(tokens), base.encode_text(tokens))
    assert len({model.fingerprint, base.fingerprint, other.fingerprint}) == 3


@pytest.mark.usefixtures("built_in")
def test_every_form_of_base(folders: dict[str, Path], other: OpenClip, tmp_path: Path) -> None:
    save_file(bare(other), tmp_path / "t.safetensors")
    shutil.copy(folders["clip"] / "open_clip_model.safetensors", tmp_path / "w.safetensors")
    bases = [
        str(folders["clip"]),
        f"open_clip:local-dir:{folders['clip']}",
        f"open_clip:Tiny-8@{tmp_path}/w.safetensors",
    ]
    for base in bases:
        model = load(f"{base}+visual@{tmp_path / 't.safetensors'}")
        assert torch.equal(model.encode_image(pixels()), other.encode_image(pixels()))
        assert model.spec == f"{base}+visual@{tmp_path / 't.safetensors'}"


def test_half_precision_is_upcast_and_a_whole_checkpoint_gives_its_tower(
    folders: dict[str, Path], other: OpenClip, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({name: tensor.half() for name, tensor in other.module.state_dict().items()}, tmp_path / "t.pt")
    with caplog.at_level(logging.WARNING, "modalign"):
        model = load(f"{folders['clip']}+visual@{tmp_path / 't.pt'}")
    assert model.dtype == torch.float32
    assert torch.equal(model.module.visual.proj, other.module.visual.proj.half().float())
    assert torch.equal(model.module.text_projection, load(folders["clip"]).module.text_projection)
    assert "t.pt: only its image tower is used; left are positional_embedding" in caplog.text


def test_a_resnet_and_a_timm_tower(tmp_path: Path) -> None:
    for name, make in (("rn50", tiny.tiny_rn50), ("custom", tiny.tiny_custom_text)):
        base, given = (make(tmp_path / f"{name}{seed}", seed=seed) for seed in (0, 1))
        torch.save(load(given).module.visual.state_dict(), tmp_path / f"{name}.pt")
        size = 64 if name == "rn50" else 32
        x = torch.randn(2, 3, size, size)
        assert torch.equal(load(f"{base}+visual@{tmp_path / name}.pt").encode_image(x), load(given).encode_image(x))


@pytest.mark.parametrize("layout", ["openai", "transformers"])
def test_over_a_model_of_transformers(folders: dict[str, Path], other: OpenClip, layout: str, tmp_path: Path) -> None:
    base = load(folders["clip"])
    assert isinstance(base, OpenClip)
    to_transformers(base).save(tmp_path / "hf")
    state = bare(other) if layout == "openai" else to_transformers(other).module.state_dict()
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, tmp_path / "t.safetensors")
    model = load(f"hf:{tmp_path / 'hf'}+visual@{tmp_path / 't.safetensors'}")
    tokens = model.tokenize(CAPTIONS)
    with torch.no_grad():
        assert (model.encode_image(pixels()) - other.encode_image(pixels())).abs().max() < 1e-5
        assert (model.encode_text(tokens) - base.encode_text(tokens)).abs().max() < 1e-5


def test_saved_it_is_whole(folders: dict[str, Path], other: OpenClip, tmp_path: Path) -> None:
    """A run holds both towers; nothing reads the file again."""
    torch.save(bare(other), tmp_path / "t.pt")
    spec = f"{folders['clip']}+visual@{tmp_path / 't.pt'}"
    model = load(spec)
    model.save(tmp_path / "saved")
    (tmp_path / "t.pt").unlink()
    assert load(tmp_path / "saved").fingerprint == model.fingerprint
    assert json.loads((tmp_path / "saved" / "modalign.json").read_text())["spec"] == spec


@pytest.mark.slow
def test_an_export_needs_neither_base_nor_file(folders: dict[str, Path], other: OpenClip, tmp_path: Path) -> None:
    torch.save(bare(other), tmp_path / "t.pt")
    spec = f"{folders['clip']}+visual@{tmp_path / 't.pt'}"
    exported = modalign.export(spec, tmp_path / "out", "open_clip")
    told = json.loads((exported / "export.json").read_text())["verification"]["sources"]
    assert told == dict.fromkeys((str(folders["clip"]), str(tmp_path / "t.pt")), "moved away")
    assert load(exported).fingerprint == load(spec).fingerprint


@pytest.mark.parametrize("form", ["folder", "open_clip", "hf"])
def test_as_a_vision_encoder(folders: dict[str, Path], other: OpenClip, form: str, tmp_path: Path) -> None:
    base = load(folders["clip"])
    assert isinstance(base, OpenClip)
    to_transformers(base).save(tmp_path / "hf")
    torch.save(bare(other), tmp_path / "t.pt")
    specs = {"folder": folders["clip"], "open_clip": f"open_clip:local-dir:{folders['clip']}", "hf": tmp_path / "hf"}
    spec = f"{'hf:' if form == 'hf' else ''}{specs[form]}+visual@{tmp_path / 't.pt'}"
    vision = modalign.load_vision(spec)
    assert vision.spec == spec
    assert (vision.encode(pixels()) - other.encode_image(pixels())).abs().max() < 1e-5
    with pytest.raises(ModelError, match="write timm:<name>@"):
        modalign.load_vision(f"timm:test_vit+visual@{tmp_path / 't.pt'}")


def test_what_does_not_fit_is_named_with_the_probable_base(
    folders: dict[str, Path], other: OpenClip, tmp_path: Path
) -> None:
    import open_clip

    def told(state: dict[str, Tensor]) -> str:
        torch.save(state, tmp_path / "t.pt")
        message = refusal(f"{folders['clip']}+visual@{tmp_path / 't.pt'}")
        assert str(tmp_path / "t.pt") in message
        return message

    state = bare(other)
    assert "1 missing (visual.proj)" in told({name: tensor for name, tensor in state.items() if name != "proj"})
    assert "1 unexpected (visual.extra)" in told(state | {"extra": torch.zeros(1)})
    assert "visual.proj: 64×48 in the file, 64×32 in the" in told(state | {"proj": torch.zeros(64, 48)})
    for architecture, named in (("ViT-S-32", "ViT-S-32"), ("RN50", "RN50, RN50-quickgelu")):
        with torch.device("meta"):
            shapes = open_clip.CLIP(**open_clip.get_model_config(architecture)).visual.state_dict()
        empty = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in shapes.items()}
        assert f"Its shapes are those of {named}: name one" in told({n: t.clone() for n, t in empty.items()})
    text = {name: tensor for name, tensor in other.module.state_dict().items() if not name.startswith("visual.")}
    assert "holds no image tower, only positional_embedding, text_projection, logit_scale and" in told(text)
    theirs = to_transformers(other).module.state_dict()
    assert "Its names are those of transformers" in told({n: t for n, t in theirs.items() if n.startswith("vis")})


@pytest.mark.parametrize("layout", ["openai", "transformers"])
def test_numbers_that_cannot_be_weights_are_named(
    folders: dict[str, Path], other: OpenClip, layout: str, tmp_path: Path
) -> None:
    """Over both families, where the file's names are the base's and where they are not."""
    base = load(folders["clip"])
    assert isinstance(base, OpenClip)
    to_transformers(base).save(tmp_path / "hf")
    spec, state = {"openai": str(folders["clip"]), "transformers": f"hf:{tmp_path / 'hf'}"}[layout], bare(other)
    for value, told in (
        (state["proj"].int(), "visual.proj is int32 in the file and float32 in"),
        (torch.full_like(state["proj"], float("nan")), "visual.proj holds NaN"),
        (state["proj"].index_fill(0, torch.tensor([3]), float("inf")), "visual.proj holds NaN or infinity"),
    ):
        torch.save(state | {"proj": value}, tmp_path / "t.pt")
        message = refusal(f"{spec}+visual@{tmp_path / 't.pt'}")
        assert message.startswith(f"{tmp_path / 't.pt'}: {told}")


def test_files_that_are_not_there_or_no_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    assert "there is no file" in refusal(f"{folders['clip']}+visual@{tmp_path / 'none.pt'}")
    (tmp_path / "t.pt").write_bytes(b"")
    assert "damaged" in refusal(f"{folders['clip']}+visual@{tmp_path / 't.pt'}")
    assert "no file after it" in refusal("demo+visual@")
    assert "no base model before it" in refusal("+visual@t.pt")


def test_a_path_that_exists_is_taken_as_it_is(folders: dict[str, Path], tmp_path: Path) -> None:
    """Whatever is in its name: `@`, `+`, or the mark itself."""
    for name in ("a@b", "a+b", "a+visual@b"):
        shutil.copytree(folders["clip"], tmp_path / name)
        for spec in (str(tmp_path / name), tmp_path / name, f"open_clip:local-dir:{tmp_path / name}"):
            assert load(spec).spec == str(spec)
    shutil.copytree(folders["hf"], tmp_path / "hf@v1")
    assert load(f"hf:{tmp_path / 'hf@v1'}").spec == f"hf:{tmp_path / 'hf@v1'}"
    file = tmp_path / "a+visual@b" / "open_clip_model.safetensors"
    assert f"open_clip:<architecture>@{file}" in refusal(file)
    assert split_tower(f"open_clip:Tiny-8@{file}") == (f"open_clip:Tiny-8@{file}", None)
    tower = tmp_path / "x@y.pt"
    assert split_tower(f"hf:owner/name@v1+visual@{tower}") == ("hf:owner/name@v1", tower)


def test_the_bases_revision_is_kept(folders: dict[str, Path], other: OpenClip, tmp_path: Path) -> None:
    model = load(folders["clip"])
    model.revision = "0123456789abcdef0123456789abcdef01234567"
    model.save(tmp_path / "m")
    torch.save(bare(other), tmp_path / "t.pt")
    assert load(f"{tmp_path / 'm'}+visual@{tmp_path / 't.pt'}").revision == model.revision
