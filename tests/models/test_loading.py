from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modalign.errors import ModelError
from modalign.models import load
from tests import tiny


def refusal(spec: str | Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(spec)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("form", ["{}", "open_clip:local-dir:{}"])
def test_open_clip_folder(folders: dict[str, Path], form: str) -> None:
    model = load(form.format(folders["clip"]))
    assert model.family == "open_clip" and model.embed_dim == 32 and not model.module.training
    assert model.spec == form.format(folders["clip"])


@pytest.mark.parametrize("form", ["{}", "hf:{}"])
def test_transformers_folder(folders: dict[str, Path], form: str) -> None:
    model = load(form.format(folders["hf"]))
    assert model.family == "transformers" and model.embed_dim == 32 and not model.module.training


def test_a_run_folder_means_its_model(folders: dict[str, Path], tmp_path: Path) -> None:
    model = load(folders["clip"])
    model.save(tmp_path / "run" / "model")
    assert load(tmp_path / "run").fingerprint == model.fingerprint


def test_a_run_without_a_model_says_so(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("method: {}")
    assert "--resume" in refusal(tmp_path)


def test_loading_leaves_the_random_stream_alone(folders: dict[str, Path]) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load(folders["clip"])
    load(folders["custom"])
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("nowhere/at/all", "no such folder"),
        ("openclip:ViT-B-32/openai", "did you mean open_clip:ViT-B-32/openai"),
        ("open_clip", "write <kind>"),
        ("open_clip:local-dir:/no/such", "no folder /no/such"),
        ("hf:/no/such", "no folder /no/such"),
        ("hf:", "hf:<owner>/<name>"),
        ("open_clip:hf-hub:", "hf-hub:<owner>/<name>"),
        ("open_clip:ViT-B-23/openai", "ViT-B-32"),
        ("open_clip:vit-b-32/openai", "ViT-B-32"),
        ("open_clip:ViT-B-32@w.pt", "no file w.pt"),
        ("open_clip:ViT-B/32@w.pt", "ViT-B-32"),
        ("open_clip:ViT-B/32/openai", "ViT-B-32"),
        ("open_clip:local-dir:", "no folder"),
        ("open_clip:zzzz/openai", "list_models"),
        ("open_clip:", "no architecture ''"),
        ("open_clip:ViT-B-32", "random weights"),
        ("open_clip:ViT-B-32", "laion2b_s34b_b79k"),
        ("open_clip:ViT-B-32/laion", "laion2b_s34b_b79k"),
        ("open_clip:ViT-B-32/openai", "use open_clip:ViT-B-32-quickgelu/openai"),
        ("open_clip:ViT-L-14/dfn2b", "use open_clip:ViT-L-14-quickgelu/dfn2b"),
        ("open_clip:ViT-B-32-quickgelu/laion2b_s34b_b79k", "use open_clip:ViT-B-32/laion2b_s34b_b79k"),
        ("open_clip:ViT-B-16/dfn2b", "use open_clip:ViT-B-16-quickgelu/dfn2b"),
        ("open_clip:ViT-H-14/dfn5b", "use open_clip:ViT-H-14-quickgelu/dfn5b"),
        ("open_clip:ViT-B-32/metaclip_400m", "use open_clip:ViT-B-32-quickgelu/metaclip_400m"),
        ("open_clip:ViT-H-14-quickgelu/metaclip_altogether", "use open_clip:ViT-H-14/metaclip_altogether"),
        ("open_clip:ViT-L-14-quickgelu/dfn2b_s39b", "use open_clip:ViT-L-14/dfn2b_s39b"),
        ("open_clip:RN50/openai", "use open_clip:RN50-quickgelu/openai"),
        ("demo:first", "demo:1"),
    ],
)
def test_a_wrong_spec_is_one_line_that_helps(spec: str, told: str) -> None:
    assert told in refusal(spec)


def test_without_a_network_tag_and_hub_names_fail_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modalign.models.hub._reachable", lambda endpoint: False)
    message = refusal("open_clip:ViT-B-32/laion2b_s34b_b79k")
    assert "ViT-B-32/laion2b_s34b_b79k" in message and "open_clip:ViT-B-32@<file>" in message
    assert "open_clip:local-dir:<folder>" in refusal("open_clip:hf-hub:laion/none")
    assert "hf:<folder>" in refusal("hf:openai/none@abc")


# ---- built-in architecture + tag, hub names ---------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(monkeypatch: pytest.MonkeyPatch, snapshot: Path) -> None:
    """Answers open_clip's downloads from a folder laid out as the hub's cache."""

    def download(repo_id: str, filename: str, **_: Any) -> str:
        assert repo_id.startswith("someone/")
        if not (snapshot / filename).exists():
            raise FileNotFoundError(filename)
        return str(snapshot / filename)

    monkeypatch.setattr("open_clip.pretrained.hf_hub_download", download)


@pytest.fixture
def snapshot(tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    target = tmp_path / "models--someone--laion" / "snapshots" / COMMIT
    shutil.copytree(folders["clip"], target)
    cached(monkeypatch, target)
    return target


@pytest.mark.usefixtures("built_in")
def test_tag_is_the_librarys_own_call_with_the_tags_preprocessing(snapshot: Path, folders: dict[str, Path]) -> None:
    model = load("open_clip:Tiny-8/laion")
    assert torch.equal(model.module.text_projection, load(folders["clip"]).module.text_projection)
    assert model.preprocess_config["interpolation"] == "bilinear"  # type: ignore[attr-defined]
    assert model.revision == COMMIT


@pytest.mark.usefixtures("built_in")
def test_activation_of_a_tag_is_checked_both_ways() -> None:
    assert "use open_clip:Tiny-8-quickgelu/openai" in refusal("open_clip:Tiny-8/openai")
    assert "use open_clip:Tiny-8/laion" in refusal("open_clip:Tiny-8-quickgelu/laion")


def test_hub_name_and_its_commit(snapshot: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    model = load("open_clip:hf-hub:someone/laion")
    assert model.revision == COMMIT
    assert model.fingerprint == load(folders["clip"]).fingerprint
    model.save(tmp_path / "saved")
    record = json.loads((tmp_path / "saved" / "modalign.json").read_text())
    assert record["revision"] == COMMIT and record["spec"] == "open_clip:hf-hub:someone/laion"
    assert load(tmp_path / "saved").revision == COMMIT


def asked_for(monkeypatch: pytest.MonkeyPatch, snapshot: Path) -> list[tuple[str, str | None]]:
    """Answers as `cached` does, and lists each file with the revision it was asked at."""
    asked: list[tuple[str, str | None]] = []

    def download(repo_id: str, filename: str, revision: str | None = None, **_: Any) -> str:
        if not (snapshot / filename).exists():
            raise FileNotFoundError(filename)
        asked.append((filename, revision))
        return str(snapshot / filename)

    monkeypatch.setattr("open_clip.pretrained.hf_hub_download", download)
    return asked


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_all_files_of_a_hub_name_come_from_one_commit(
    snapshot: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None, tmp_path: Path
) -> None:
    """What `main` or a tag resolved to when the first file was read: weights pushed meanwhile are not mixed in."""
    asked = asked_for(monkeypatch, snapshot)
    spec = "open_clip:hf-hub:someone/laion" + (f"@{revision}" if revision else "")
    model = load(spec)
    assert asked == [("open_clip_config.json", revision), ("open_clip_model.safetensors", COMMIT)]
    assert (model.spec, model.revision) == (spec, COMMIT)
    assert model.preprocess_config["mean"] == tiny.OPENAI_MEAN  # type: ignore[attr-defined]
    torch.save(model.module.visual.state_dict(), tmp_path / "t.pt")
    over = load(f"{spec}+visual@{tmp_path / 't.pt'}")
    assert over.revision == COMMIT and over.fingerprint == model.fingerprint


def test_a_tokenizer_in_the_repository_comes_from_the_same_commit(
    tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "models--someone--laion" / "snapshots" / COMMIT
    shutil.copytree(folders["custom"], target)
    config = json.loads((target / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_model_name": str(target), "hf_tokenizer_name": "someone/laion"}
    (target / "open_clip_config.json").write_text(json.dumps(config))
    asked_for(monkeypatch, target)
    from transformers import AutoTokenizer

    read, seen = AutoTokenizer.from_pretrained, []

    def from_pretrained(name: str, revision: str | None = None, **settings: Any) -> Any:
        seen.append((name, revision))
        return read(target, **settings)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", from_pretrained)
    model = load("open_clip:hf-hub:someone/laion")
    assert seen == [("someone/laion", COMMIT)]
    assert torch.equal(model.tokenize(["a red cat"]), load(folders["custom"]).tokenize(["a red cat"]))


def test_remote_code_in_a_hub_configuration_is_refused(snapshot: Path) -> None:
    config = json.loads((snapshot / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    (snapshot / "open_clip_config.json").write_text(json.dumps(config))
    assert "remote code" in refusal("open_clip:hf-hub:someone/laion")
    assert "remote code" in refusal(snapshot)


def test_hub_name_without_weights_is_not_filled_at_random(snapshot: Path) -> None:
    (snapshot / "open_clip_model.safetensors").unlink()
    assert "someone/laion" in refusal("open_clip:hf-hub:someone/laion")


# ---- architecture + file ----------------------------------------------------------------------------------------


@pytest.fixture
def weights(folders: dict[str, Path]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(folders["clip"] / "open_clip_model.safetensors")
    return tensors


@pytest.mark.usefixtures("built_in")
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
def test_checkpoint_file(weights: dict[str, torch.Tensor], suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(weights, file)
    else:
        torch.save(weights, file)
    model = load(f"open_clip:Tiny-8@{file}")
    assert torch.equal(model.module.visual.proj, weights["visual.proj"])


@pytest.mark.usefixtures("built_in")
def test_training_checkpoint_of_a_data_parallel_half_precision_model(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    state = {f"module.{name}": tensor.half() for name, tensor in weights.items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": state, "optimizer": {"lr": 0.1}}, tmp_path / "e.pt")
    model = load(f"open_clip:Tiny-8@{tmp_path / 'e.pt'}")
    assert model.module.visual.proj.dtype == torch.float32
    assert torch.equal(model.module.visual.proj, weights["visual.proj"].half().float())


@pytest.mark.usefixtures("built_in")
def test_openai_file_needs_quickgelu(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    jit = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(16), "vocab_size": torch.tensor(49408)}
    torch.save(weights | jit, tmp_path / "openai.pt")
    message = refusal(f"open_clip:Tiny-8@{tmp_path / 'openai.pt'}")
    assert f"use open_clip:Tiny-8-quickgelu@{tmp_path / 'openai.pt'}" in message
    model = load(f"open_clip:Tiny-8-quickgelu@{tmp_path / 'openai.pt'}")
    assert torch.equal(model.module.visual.proj, weights["visual.proj"])


def test_openai_file_in_a_gelu_folder(
    folders: dict[str, Path], weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    shutil.copy(folders["clip"] / "open_clip_config.json", tmp_path)
    torch.save(weights | {"vocab_size": torch.tensor(49408)}, tmp_path / "open_clip_pytorch_model.bin")
    assert '"quick_gelu": true' in refusal(tmp_path)


@pytest.mark.usefixtures("built_in")
def test_weights_of_another_architecture_are_named(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    weights = dict(weights)
    del weights["ln_final.bias"]
    weights["visual.extra"] = torch.zeros(1)
    weights["visual.proj"] = torch.zeros(64, 48)
    weights["visual.positional_embedding"] = torch.zeros(10, 64)  # open_clip would interpolate it, and say nothing
    save_file(weights, tmp_path / "w.safetensors")
    message = refusal(f"open_clip:Tiny-8@{tmp_path / 'w.safetensors'}")
    assert "w.safetensors" in message and "Tiny-8" in message
    assert "1 missing (ln_final.bias)" in message and "1 unexpected (visual.extra)" in message
    assert "2 of another shape" in message and "visual.proj: 64×48 in the file, 64×32 in the architecture" in message


@pytest.mark.usefixtures("built_in")
def test_damaged_files(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(weights, tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "cut short" in refusal(f"open_clip:Tiny-8@{tmp_path / 'w.safetensors'}")
    torch.save(weights, tmp_path / "w.pt")
    whole = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "w.pt").write_bytes(whole[: len(whole) // 2])
    assert "damaged" in refusal(f"open_clip:Tiny-8@{tmp_path / 'w.pt'}")
    (tmp_path / "w.pt").write_bytes(b"")
    assert "damaged" in refusal(f"open_clip:Tiny-8@{tmp_path / 'w.pt'}")
    (tmp_path / "w.pt").write_text("version https://git-lfs.github.com/spec/v1")
    assert "w.pt" in refusal(f"open_clip:Tiny-8@{tmp_path / 'w.pt'}")
    assert "no file" in refusal(f"open_clip:Tiny-8@{tmp_path / 'missing.pt'}")
    assert "is a folder" in refusal(f"open_clip:Tiny-8@{tmp_path}")
    (tmp_path / "w.npz").write_bytes(b"1")
    assert ".safetensors" in refusal(f"open_clip:Tiny-8@{tmp_path / 'w.npz'}")


class Surprise:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(self.target),))  # type: ignore[attr-defined]


@pytest.mark.usefixtures("built_in")
def test_pickled_code_is_refused_and_does_not_run(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    surprise = Surprise()
    surprise.target = str(tmp_path / "ran")  # type: ignore[attr-defined]
    torch.save({"state_dict": weights, "extra": surprise}, tmp_path / "w.pt")
    assert "more than tensors" in refusal(f"open_clip:Tiny-8@{tmp_path / 'w.pt'}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("built_in")
def test_torchscript_and_other_content_are_refused(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "jit.pt")  # type: ignore[no-untyped-call]
    assert "TorchScript" in refusal(f"open_clip:Tiny-8@{tmp_path / 'jit.pt'}")
    torch.save([1, 2], tmp_path / "list.pt")
    assert "state_dict" in refusal(f"open_clip:Tiny-8@{tmp_path / 'list.pt'}")
    torch.save({"net": {"a": torch.zeros(1)}, "step": 3}, tmp_path / "nested.pt")
    assert "net, step are no tensor" in refusal(f"open_clip:Tiny-8@{tmp_path / 'nested.pt'}")


# ---- folders ----------------------------------------------------------------------------------------------------


def test_folders_that_hold_no_whole_model(folders: dict[str, Path], tmp_path: Path) -> None:
    assert "holds no model" in refusal(tmp_path)
    shutil.copy(folders["clip"] / "open_clip_config.json", tmp_path)
    assert "no weights" in refusal(tmp_path)
    (tmp_path / "open_clip_config.json").write_text("{")
    assert "JSON" in refusal(tmp_path)
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 4}}')
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"")
    assert "open_clip_config.json" in refusal(tmp_path)
    assert "names its architecture" in refusal(tmp_path / "open_clip_model.safetensors").replace("name ", "names ")


def test_transformers_folders_that_cannot_be_read(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(folders["hf"] / name, tmp_path)
    assert "no weights" in refusal(f"hf:{tmp_path}")
    state = load_file(folders["hf"] / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "1 missing (visual_projection.weight)" in refusal(tmp_path)
    whole = (folders["hf"] / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:1000])
    assert str(tmp_path) in refusal(tmp_path)
    state = load_file(folders["hf"] / "model.safetensors")
    save_file(state | {"text_projection.weight": torch.zeros(3, 3)}, tmp_path / "model.safetensors", {"format": "pt"})
    assert "text_projection" in refusal(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "blip"}))
    assert "'blip'" in refusal(tmp_path)
    (tmp_path / "config.json").unlink()
    assert "config.json" in refusal(f"hf:{tmp_path}")


def test_missing_tokenizer_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    for kind in ("hf", "custom"):
        shutil.copytree(folders[kind], tmp_path / kind)
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt"):
            (tmp_path / kind / name).unlink(missing_ok=True)
        assert str(tmp_path / kind) in refusal(tmp_path / kind)


@pytest.mark.parametrize(("kind", "file"), [("custom", "config.json"), ("hf", "tokenizer_config.json")])
def test_code_in_a_folder_is_refused(folders: dict[str, Path], tmp_path: Path, kind: str, file: str) -> None:
    shutil.copytree(folders[kind], tmp_path / "m")
    config = json.loads((tmp_path / "m" / file).read_text())
    (tmp_path / "m" / file).write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    (tmp_path / "m" / "evil.py").write_text("raise SystemExit('ran')")
    assert "auto_map" in refusal(tmp_path / "m")


def test_custom_text_tower_by_absolute_place(folders: dict[str, Path], tmp_path: Path) -> None:
    """A config.json elsewhere is followed; one beside the weights comes first."""
    shutil.copytree(folders["custom"], tmp_path / "m")
    config = json.loads((tmp_path / "m" / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = str(tmp_path / "bert")
    (tmp_path / "m" / "open_clip_config.json").write_text(json.dumps(config))
    fingerprint = load(folders["custom"]).fingerprint
    assert load(tmp_path / "m").fingerprint == fingerprint
    (tmp_path / "bert").mkdir()
    (tmp_path / "m" / "config.json").rename(tmp_path / "bert" / "config.json")
    model = load(tmp_path / "m")
    model.save(tmp_path / "saved")
    shutil.rmtree(tmp_path / "bert")
    assert load((tmp_path / "saved").rename(tmp_path / "moved")).fingerprint == model.fingerprint


def test_tiny_models_differ_by_seed(tmp_path: Path) -> None:
    specs = [tiny.tiny_open_clip(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    assert load(specs[0]).fingerprint != load(specs[1]).fingerprint
