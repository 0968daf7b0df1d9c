"""A refined tower inside a tiny LLaVA that transformers made: what it reads, what it says, and what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import modalign
from modalign.errors import DataError, ExportError, ModelError, RecipeError
from modalign.evaluation.llava.answering import answers
from modalign.evaluation.llava.assembling import Assembled, Parts, assemble
from modalign.evaluation.llava.mixing import MixedTower
from modalign.exporting import TARGETS
from modalign.exporting.llava import load_llava, pixel_difference, swap_tower, tower_of
from modalign.models.vision import load_vision
from tests import tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a LLaVA, two CLIPs of its tower's shape, an open_clip one, and eight pictures with questions."""
    root = tmp_path_factory.mktemp("llava")
    tiny.tiny_llava(root / "llava")
    tiny.tiny_hf_clip(root / "clip")
    tiny.tiny_hf_clip(root / "other", seed=5)
    tiny.write_pairs(root / "data", n=8)
    rows = [
        {"question_id": 7 * i, "image": f"{i:04d}.png", "question": f"What is {i}?", "answers": ["red"] * 10}
        for i in range(8)
    ]
    (root / "data" / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="module")
def clip(place: Path) -> modalign.DualEncoder:
    return modalign.load(f"hf:{place / 'clip'}")


def _pixels() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _read(llava: Any, pixels: torch.Tensor) -> torch.Tensor:
    """What LLaVA hands to its projector, taken by a hook in transformers' own forward pass."""
    seen: list[torch.Tensor] = []
    projector = llava.model.multi_modal_projector
    with projector.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])), torch.no_grad():
        llava.get_image_features(pixel_values=pixels)
    return seen[0]


def test_llava_reads_the_swapped_tower(place: Path, clip: modalign.DualEncoder) -> None:
    """Its projector is fed the penultimate block's patch tokens of the model, and nothing else of it has changed."""
    llava = load_llava(place / "llava")
    before = {name: tensor.clone() for name, tensor in llava.state_dict().items()}
    swap_tower(llava, clip)
    with torch.no_grad():
        expected = clip.encode_tokens(_pixels(), -2).patches
    torch.testing.assert_close(_read(llava, _pixels()), expected, rtol=0, atol=1e-6)
    changed = [name for name, tensor in llava.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed and all("vision_tower" in name for name in changed)


def test_an_open_clip_tower_is_written_as_transformers_first(place: Path, clip: modalign.DualEncoder) -> None:
    model = TARGETS["open_clip"](clip)
    assert model.family == "open_clip"
    llava = load_llava(place / "llava")
    swap_tower(llava, model)
    with torch.no_grad():
        expected = model.encode_tokens(_pixels(), -2).patches
    torch.testing.assert_close(_read(llava, _pixels()), expected, rtol=0, atol=1e-5)


def test_half_precision_is_kept(place: Path, clip: modalign.DualEncoder) -> None:
    llava = load_llava(place / "llava", dtype=torch.bfloat16)
    swap_tower(llava, clip)
    assert {tensor.dtype for tensor in llava.state_dict().values()} == {torch.bfloat16}
    own = clip.module.vision_model.embeddings.class_embedding
    assert torch.equal(tower_of(llava).state_dict()["embeddings.class_embedding"], own.to(torch.bfloat16))


def test_what_does_not_fit_is_refused_by_name(place: Path, tmp_path: Path) -> None:
    llava = load_llava(place / "llava")
    kept = {name: tensor.clone() for name, tensor in tower_of(llava).state_dict().items()}
    gelu = modalign.load(tiny.tiny_hf_clip(tmp_path / "gelu", hidden_act="gelu"))
    with pytest.raises(ExportError, match=r"vision_tower\.config\.hidden_act is 'gelu'.*'quick_gelu'"):
        swap_tower(llava, gelu)
    siglip = modalign.load(tiny.tiny_hf_siglip(tmp_path / "siglip"))
    with pytest.raises(ExportError, match=r"has a clip tower and .* a siglip one"):
        swap_tower(llava, siglip)
    resnet = modalign.load(tiny.tiny_rn50(tmp_path / "rn50"))
    with pytest.raises(ExportError, match="ModifiedResNet"):
        swap_tower(llava, resnet)
    open_clip = modalign.load(tiny.tiny_open_clip(tmp_path / "oc", quick_gelu=True))  # its MLP is twice as wide
    with pytest.raises(ExportError, match=r"vision_tower\.encoder\.layers\.0\.mlp\.fc1\.weight has sizes 256×64 and"):
        swap_tower(llava, open_clip)
    wide = load_llava(tiny.tiny_llava(tmp_path / "wide", width=32))
    with pytest.raises(ExportError, match=r"vision_tower\.embeddings\.class_embedding has sizes 64 and 32"):
        swap_tower(wide, modalign.load(f"hf:{place / 'clip'}"))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in tower_of(llava).state_dict().items())


def test_another_kind_of_folder_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="model_type 'clip'"):
        load_llava(place / "clip")
    with pytest.raises(ModelError, match="there is no folder"):
        load_llava(tmp_path / "nowhere")


def test_greedy_answers_equal_transformers_own_one_by_one(
    place: Path, clip: modalign.DualEncoder, tmp_path: Path
) -> None:
    """A batch, padded, against the library's processor and generate on single questions."""
    from transformers import AutoProcessor

    llava = assemble(Parts(str(place / "llava")), clip)
    processor = AutoProcessor.from_pretrained(place / "llava")
    pictures = [place / "data" / f"{i:04d}.png" for i in range(4)]
    texts = ["What?", "What is on the long table?", "Who?", "How many are there?"]
    said = answers(llava, pictures, ["x"] * 4, texts, max_new_tokens=6, folder=tmp_path, batch_size=4)
    for picture, text, answer in zip(pictures, texts, said, strict=True):
        inputs = processor(images=Image.open(picture), text=f"USER: <image>\n{text} ASSISTANT:", return_tensors="pt")
        with torch.no_grad():
            tokens = llava.module.generate(**inputs, do_sample=False, max_new_tokens=6, pad_token_id=2)
        alone = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        assert answer == alone.strip()
    assert len(set(said)) == 4


class _Killed(Exception):  # noqa: N818 — no error
    pass


def test_a_killed_run_goes_on_where_it_was(place: Path, clip: modalign.DualEncoder, tmp_path: Path) -> None:
    """The same answers as a run in one piece; what was answered is not asked again, and half a line does not hurt."""
    llava = assemble(Parts(str(place / "llava")), clip)
    pictures = [place / "data" / f"{i:04d}.png" for i in range(8)]
    asked: dict[str, Any] = {"max_new_tokens": 5, "batch_size": 3}
    texts = [f"{i}?" for i in range(8)]
    whole = answers(llava, pictures, ["x"] * 8, texts, folder=tmp_path / "whole", **asked)

    def kill(done: int, total: int) -> None:
        if done >= 6:
            raise _Killed

    with pytest.raises(_Killed):
        answers(llava, pictures, ["x"] * 8, texts, folder=tmp_path / "cut", progress=kill, **asked)
    (file,) = (tmp_path / "cut").iterdir()
    with file.open("a") as out:
        out.write('{"place": 6, "resp')
    counted = _Counting(llava.module)
    again = answers(
        Assembled(counted, llava.prompting, llava.identity),
        pictures,
        ["x"] * 8,
        texts,
        folder=tmp_path / "cut",
        **asked,
    )
    assert again == whole and counted.rows == 2
    assert (
        answers(
            Assembled(None, llava.prompting, llava.identity),
            pictures,
            ["x"] * 8,
            texts,
            folder=tmp_path / "cut",
            **asked,
        )
        == whole
    )
    assert file.read_text() == next((tmp_path / "whole").iterdir()).read_text()


class _Counting:
    """A model that counts the rows it generates for."""

    def __init__(self, module: Any) -> None:
        self.module, self.device, self.dtype, self.rows = module, module.device, module.dtype, 0

    def generate(self, **inputs: Any) -> Any:
        self.rows += len(inputs["input_ids"])
        return self.module.generate(**inputs)


def test_vqa_through_evaluate(place: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Other towers give other answers; the scores are those of the answers that were kept."""
    from modalign.evaluation.gate import judge
    from modalign.evaluation.llava.vqa_accuracy import vqa_accuracy

    spec = f"vqa[llava={place / 'llava'},answers={tmp_path},max_new_tokens=4]:{place / 'data' / 'questions.jsonl'}"
    with caplog.at_level(logging.INFO, logger="modalign"):
        results = [modalign.evaluate(modalign.load(f"hf:{place / name}"), [spec]) for name in ("clip", "other")]
    assert "the LLaVA prepares pictures as the model does" in caplog.text
    files = list(tmp_path.iterdir())
    assert len(files) == 2 and files[0].read_text() != files[1].read_text()
    said = [json.loads(line)["response"] for line in files[0].read_text().split("\n")[:-1]]
    assert results[0].metrics["vqa.vqa_accuracy"].outcomes.tolist() == [
        vqa_accuracy(text, ["red"] * 10) for text in said
    ]
    assert results[0].tasks[0].protocol == results[1].tasks[0].protocol
    assert {row.metric for row in judge(*results).rows} == {"vqa.exact_match", "vqa.vqa_accuracy"}


def test_mmvp_through_evaluate(place: Path, clip: modalign.DualEncoder, tmp_path: Path) -> None:
    folder = tmp_path / "MMVP"
    (folder / "MMVP Images").mkdir(parents=True)
    rows = ["Index,Question,Options,Correct Answer"]
    for i in range(1, 5):
        Image.open(place / "data" / f"000{i}.png").save(folder / "MMVP Images" / f"{i}.jpg")
        rows.append(f"{i},Is it red?,(a) Yes (b) No,({'ab'[i % 2]})")
    (folder / "Questions.csv").write_text("\n".join(rows))
    task = f"mmvp[llava={place / 'llava'},answers={tmp_path / 'said'},max_new_tokens=3]:{folder}"
    result = modalign.evaluate(clip, [task]).tasks[0]
    assert len(result.metrics["pair_accuracy"].outcomes) == 2
    assert result.protocol["pairs"] == 2 and result.protocol["decoding"] == "greedy"


def test_without_a_language_model_it_is_asked_for(place: Path, clip: modalign.DualEncoder) -> None:
    with pytest.raises(RecipeError, match="add --llava DIR"):
        modalign.evaluate(clip, [f"vqa:{place / 'data' / 'questions.jsonl'}"])


def test_broken_questions_are_named(place: Path, tmp_path: Path) -> None:
    from modalign.evaluation.llava.questions import read_questions

    good = {"image": str(place / "data" / "0000.png"), "question": "What?", "answer": "red"}
    file = tmp_path / "q.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in (good, good | {"image": "gone.png", "answer": ""})))
    with pytest.raises(DataError, match=r"q.jsonl:2: no such file gone.png; no answer"):
        read_questions(str(file))
    assert [q.answers for q in read_questions(str(file), max_bad=1)] == [("red",)]
    file.write_text("\n".join(json.dumps(good | {"question_id": 3}) for _ in range(2)))
    with pytest.raises(DataError, match=r"q.jsonl:2: question_id 3 is there twice, first at q.jsonl:1"):
        read_questions(str(file))


def test_preprocessing_differences_are_told(place: Path, tmp_path: Path) -> None:
    """The open_clip twin resizes with torchvision on the same settings: near, not equal; another size is told apart."""
    from transformers import AutoProcessor

    images = AutoProcessor.from_pretrained(place / "llava").image_processor
    picture = [Image.open(place / "data" / "0000.png").convert("RGB").resize((50, 40))]
    near = pixel_difference(images, modalign.load(tiny.tiny_open_clip(tmp_path / "oc")), picture)
    assert near.largest is not None and 0 <= near.largest < 1
    far = pixel_difference(images, modalign.load(tiny.tiny_rn50(tmp_path / "rn50")), picture)
    assert far.largest is None and "3×32×32, the model's 3×64×64" in str(far)


# ---- a second encoder -------------------------------------------------------------------------------------------


def _second(folder: Path, width: int = 64) -> str:
    """A tiny DINOv2 (patch 4) with its image processor; its spec."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=width, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4, mlp_ratio=2
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        Dinov2Model(config).save_pretrained(folder)
    size = {"height": 16, "width": 16}
    statistics = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    BitImageProcessor(size={"shortest_edge": 16}, crop_size=size, **statistics).save_pretrained(folder)
    return f"hf:{folder}"


def test_mixed_tokens_are_the_weighted_sum(place: Path, clip: modalign.DualEncoder, tmp_path: Path) -> None:
    """(1 − share)·own + share·second, patch by patch; the second sees the picture under its own mean and deviation."""
    spec = _second(tmp_path / "dino")
    reads = {
        share: _read(assemble(Parts(str(place / "llava"), mix=spec, share=share), clip).module, _pixels())
        for share in (0.0, 0.25, 1.0)
    }
    with torch.no_grad():
        own = clip.encode_tokens(_pixels(), -2).patches
    second: Any = load_vision(spec).module
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (tiny.OPENAI_MEAN, tiny.OPENAI_STD))
    raw = torch.nn.functional.interpolate(_pixels(), size=(16, 16), mode="bicubic", antialias=True) * std + mean
    shown = (raw - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1)
    with torch.no_grad():
        other = second(pixel_values=shown).last_hidden_state[:, 1:]
    torch.testing.assert_close(reads[0.0], own, rtol=0, atol=1e-5)
    torch.testing.assert_close(reads[1.0], other, rtol=0, atol=1e-4)
    torch.testing.assert_close(reads[0.25], 0.75 * own + 0.25 * other, rtol=0, atol=1e-4)


def test_a_second_encoder_of_another_width_is_refused(place: Path, tmp_path: Path) -> None:
    llava = load_llava(place / "llava")
    second = load_vision(_second(tmp_path / "dino", width=32))
    with pytest.raises(ModelError, match=r"16×32 tokens × width and the LLaVA's tower 16×64"):
        MixedTower(tower_of(llava), second, 0.5, [-2], tiny.OPENAI_MEAN, tiny.OPENAI_STD)


def test_another_llava_is_another_task(place: Path, tmp_path: Path) -> None:
    """What is kept of an evaluation goes by `facts`: the LLaVA's own files are part of it."""
    from modalign.evaluation.suite import prepare

    llava = Path(tiny.tiny_llava(tmp_path / "llava"))
    spec = f"vqa[llava={llava}]:{place / 'data' / 'questions.jsonl'}"
    identity = prepare([spec]).identity
    assert prepare([spec]).identity == identity
    tiny.tiny_llava(llava, seed=4)
    assert prepare([spec]).identity != identity
