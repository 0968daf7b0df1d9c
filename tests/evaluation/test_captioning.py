"""The decoder of text features: what it learns, what it is fed, what is kept; and the task that uses it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import modalign
from modalign.errors import DataError, OutputError, RecipeError
from modalign.evaluation.captioning import Settings, project_on_memory, read_captions, train_decoder
from modalign.evaluation.captioning.decoder import Vocabulary
from modalign.evaluation.kinds.captioning import Captioning
from modalign.evaluation.results import Results
from modalign.evaluation.suite import prepare
from tests.tiny import tiny_open_clip, write_pairs

CAPTIONS = [
    "a red cat",
    "two green boats on the sea",
    "Größe: 3 ½ café",
    "日本語 😀",
    "the dog's bowl isn't here",
    "tree",
]
LOW = [caption.lower() for caption in CAPTIONS]
TINY = Settings(epochs=60, width=32, vocabulary=400, batch_size=6, learning_rate=5e-3)


def features(count: int = len(CAPTIONS), width: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


class TestVocabulary:
    def test_gives_back_any_text_and_learns_the_same_twice(self) -> None:
        first, second = (Vocabulary.learn(CAPTIONS, 400) for _ in range(2))
        assert first.text == second.text
        tokens = first.encode([*CAPTIONS, "ünseen <|endoftext|> zebra"], 99)
        padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=first.end)
        assert first.decode(padded) == [*LOW, "ünseen <|endoftext|> zebra"]

    def test_cuts_long_captions_without_an_end(self) -> None:
        vocabulary = Vocabulary.learn(CAPTIONS, 400)
        (tokens,) = vocabulary.encode([CAPTIONS[1]], 3)
        assert len(tokens) == 3 and vocabulary.end not in tokens
        assert len(vocabulary.encode([""], 3)[0]) == 1


class TestDecoder:
    def test_says_again_what_it_learned_greedily_and_with_beams_whatever_the_norm(self) -> None:
        decoder = train_decoder(features(), CAPTIONS, TINY)
        assert decoder.generate(features()) == LOW
        assert decoder.generate(7 * features(), beams=3) == LOW

    def test_the_same_seed_gives_the_same_weights_and_leaves_the_random_state_alone(self) -> None:
        short = replace(TINY, epochs=2)
        state = torch.random.get_rng_state()
        first = train_decoder(features(), CAPTIONS, short).state_dict()
        torch.rand(3)
        second = train_decoder(features(), CAPTIONS, short).state_dict()
        other = train_decoder(features(), CAPTIONS, replace(short, seed=1)).state_dict()
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert not torch.equal(first["prefix.weight"], other["prefix.weight"])
        torch.random.set_rng_state(state)
        expected = torch.rand(2)
        torch.random.set_rng_state(state)
        train_decoder(features(), CAPTIONS, replace(short, epochs=1))
        assert torch.equal(torch.rand(2), expected)

    def test_the_budget_is_ten_epochs_and_1500_steps_at_least(self) -> None:
        budgets = [Settings.for_corpus(count).epochs for count in (1, 640, 9_600, 9_601, 500_000)]
        assert budgets == [1500, 150, 10, 10, 10]
        assert Settings.for_corpus(640, epochs=2, seed=3) == Settings(epochs=2, seed=3)

    def test_padding_does_not_change_the_loss(self) -> None:
        decoder = train_decoder(features(), CAPTIONS, replace(TINY, epochs=1))
        tokens = decoder.vocabulary.encode(CAPTIONS, 40)
        alone = [decoder.loss(features()[i : i + 1], [tokens[i]]) * len(tokens[i]) for i in range(len(tokens))]
        whole = decoder.loss(features(), tokens)
        torch.testing.assert_close(sum(alone) / sum(map(len, tokens)), whole)  # type: ignore[arg-type]

    def test_goes_on_after_its_last_whole_epoch(self, tmp_path: Path) -> None:
        class StopError(Exception):
            pass

        def stop(epochs: int, loss: float) -> None:
            if epochs == 2:
                raise StopError

        short = replace(TINY, epochs=4, batch_size=2)
        whole = train_decoder(features(), CAPTIONS, short).state_dict()
        with pytest.raises(StopError):
            train_decoder(features(), CAPTIONS, short, keep=tmp_path, progress=stop)
        seen: list[int] = []
        resumed = train_decoder(features(), CAPTIONS, short, keep=tmp_path, progress=lambda e, _: seen.append(e))
        assert seen == [3, 4]
        assert all(torch.equal(whole[name], tensor) for name, tensor in resumed.state_dict().items())
        again = train_decoder(features(), CAPTIONS, short, keep=tmp_path, progress=lambda e, _: seen.append(e))
        assert seen == [3, 4] and again.generate(features()) == resumed.generate(features())

    @pytest.mark.parametrize("change", ["features", "captions", "settings"])
    def test_another_tower_corpus_or_setting_is_another_decoder(self, tmp_path: Path, change: str) -> None:
        short = replace(TINY, epochs=1)
        train_decoder(features(), CAPTIONS, short, keep=tmp_path)
        train_decoder(
            features(seed=int(change == "features")),
            CAPTIONS[::-1] if change == "captions" else CAPTIONS,
            replace(short, seed=1) if change == "settings" else short,
            keep=tmp_path,
        )
        assert len(list(tmp_path.iterdir())) == 2

    def test_refuses_what_it_cannot_use(self, tmp_path: Path) -> None:
        short = replace(TINY, epochs=1)
        with pytest.raises(DataError, match="one row a caption"):
            train_decoder(features(3), CAPTIONS, short)
        with pytest.raises(DataError, match="NaN or infinity"):
            train_decoder(features() / 0, CAPTIONS, short)
        decoder = train_decoder(features(), CAPTIONS, short, keep=tmp_path)
        with pytest.raises(DataError, match="width 16"):
            decoder.generate(features(width=8))
        (file,) = tmp_path.iterdir()
        file.write_bytes(b"nothing")
        with pytest.raises(OutputError, match="damaged"):
            train_decoder(features(), CAPTIONS, short, keep=tmp_path)
        with pytest.raises(OutputError, match="cannot be written"):
            train_decoder(features(), CAPTIONS, short, keep=file)


class TestMemory:
    def test_is_the_formula(self) -> None:
        image, memory = features(5).double(), features(9, seed=1).double()
        x, m = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (image.numpy(), memory.numpy()))
        weights = np.exp(100 * x @ m.T - (100 * x @ m.T).max(1, keepdims=True))
        expected = weights / weights.sum(1, keepdims=True) @ m
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(project_on_memory(image, memory).numpy(), expected, atol=1e-12)
        np.testing.assert_allclose(project_on_memory(3 * image, 5 * memory).numpy(), expected, atol=1e-12)

    def test_chunks_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        image, memory = features(7).double(), features(9, seed=1).double()
        whole = project_on_memory(image, memory)
        monkeypatch.setattr("modalign.evaluation.captioning.memory.CELLS_AT_ONCE", 20)
        torch.testing.assert_close(project_on_memory(image, memory), whole)

    def test_a_text_feature_of_the_memory_stays_where_it_is(self) -> None:
        memory = features(9, width=64)
        torch.testing.assert_close(project_on_memory(memory, memory), normalize(memory, dim=-1), atol=1e-4, rtol=0)

    @pytest.mark.parametrize("side", [0, 1])
    def test_refuses_what_is_not_finite(self, side: int) -> None:
        both = [features(3), features(4, seed=1)]
        both[side][1, 2] = math.nan
        with pytest.raises(DataError, match="check the model's weights and precision"):
            project_on_memory(*both)

    def test_refuses_another_width(self) -> None:
        with pytest.raises(DataError, match="do not fit"):
            project_on_memory(features(2), features(2, width=8))


class TestReadCaptions:
    def test_text_tables_and_pairs(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("\ufeffone\r\n two \n\none\nthree\u2028lines\n", encoding="utf-8")
        (tmp_path / "a.csv").write_text('id,caption\n1,"one, two"\n2,three\n', encoding="utf-8")
        (tmp_path / "a.jsonl").write_text('{"said": "x", "text": ["one", "two"]}\n', encoding="utf-8")
        assert read_captions(str(tmp_path / "a.txt")) == ["one", "two", "three\u2028lines"]
        assert read_captions(str(tmp_path / "a.csv")) == ["one, two", "three"]
        assert read_captions(str(tmp_path / "a.jsonl")) == ["one", "two"]
        assert read_captions(str(tmp_path / "a.jsonl"), text_column="said") == ["x"]
        folder = Path(write_pairs(tmp_path / "pairs", n=3))
        assert read_captions(str(folder)) == list(dict.fromkeys(modalign.pairs(folder).captions))

    def test_says_what_is_wrong(self, tmp_path: Path) -> None:
        (tmp_path / "empty.txt").write_text("\n \n")
        (tmp_path / "latin.txt").write_bytes("Größe".encode("latin-1"))
        (tmp_path / "a.csv").write_text("id,words\n1,a\n")
        (tmp_path / "holes.csv").write_text("text,id\na,1\n,2\n")
        for name, message in {
            "empty.txt": "holds no caption",
            "latin.txt": "not UTF-8",
            "a.csv": "no column text",
            "holes.csv": "holes.csv:3",
            "none": "no such file",
        }.items():
            with pytest.raises(DataError, match=message):
                read_captions(str(tmp_path / name))
        assert read_captions(str(tmp_path / "holes.csv"), max_bad=1) == ["a"]


class TestTask:
    def test_scores_both_ways_keeps_captions_and_repeats(self, tmp_path: Path) -> None:
        model = modalign.load(tiny_open_clip(tmp_path / "model"))
        folder = Path(write_pairs(tmp_path / "pairs", n=8))
        corpus = tmp_path / "corpus.txt"
        corpus.write_text("\n".join(["a red cat", "a green boat", *modalign.pairs(folder).captions[:1]]))
        task = f"captioning[corpus={corpus},epochs=2,keep={tmp_path / 'kept'}]:{folder}"
        results = modalign.evaluate(model, [task, f"retrieval:{folder}"], resamples=50)
        names = {f"{way}_{metric}" for way in ("direct", "memory") for metric in ("cider_d", "rouge_l")}
        names |= {f"{way}_bleu_{n}" for way in ("direct", "memory") for n in (1, 2, 3, 4)}
        found = results.tasks[0]
        assert set(found.metrics) == names
        assert found.protocol["references_in_corpus"] >= 1 and found.protocol["corpus_captions"] == 3
        first = found.notes["captions"][0]
        assert set(first) == {"picture", "direct", "memory", "references"}
        results.save(tmp_path / "results.json")
        loaded = Results.load(tmp_path / "results.json").tasks[0]
        assert loaded.notes == found.notes and loaded.protocol == found.protocol
        again = modalign.evaluate(model, [task.replace(f",keep={tmp_path / 'kept'}", "")], resamples=50).tasks[0]
        assert again.notes == found.notes and again.protocol == found.protocol
        for name, metric in again.metrics.items():
            assert metric.value == found.metrics[name].value and metric.interval == found.metrics[name].interval

    def test_one_example_a_picture_with_the_captions_of_all_its_rows(self, tmp_path: Path) -> None:
        folder = Path(write_pairs(tmp_path / "pairs", n=3))
        table = next(folder.glob("metadata.*"))
        rows = table.read_text().splitlines()
        table.write_text("\n".join([*rows, rows[1].split(",")[0] + ",another one"]) + "\n")
        (tmp_path / "c.txt").write_text("a\n")
        suite = prepare([f"captioning[corpus={tmp_path / 'c.txt'}]:{folder}"])
        (task,) = suite.tasks
        assert isinstance(task, Captioning)
        pictures, references = task._references(torch.tensor([0, -1, 1]))
        assert pictures.tolist() == [0, 2] and references[0][-1] == "another one"

    def test_the_memory_is_another_corpus_and_part_of_what_is_judged(self, tmp_path: Path) -> None:
        folder = Path(write_pairs(tmp_path / "pairs", n=3))
        for name in "ab":
            (tmp_path / name).write_text(f"caption {name}\n")
        suite, other = (
            prepare([f"captioning[corpus={tmp_path / 'a'},memory={tmp_path / memory}]:{folder}"]) for memory in "ab"
        )
        assert suite.identity != other.identity
        (task,) = other.tasks
        assert [other.strings[i] for i in task.strings.tolist()] == ["caption a", "caption b"]

    def test_a_tower_of_nan_writes_no_captions_and_trains_no_decoder(self, tmp_path: Path) -> None:
        folder, corpus, kept = write_pairs(tmp_path / "pairs", n=4), tmp_path / "c.txt", tmp_path / "kept"
        corpus.write_text("a red cat\na blue dog\n")
        model = modalign.load(tiny_open_clip(tmp_path / "clip"))
        with torch.no_grad():
            next(parameter for name, parameter in model.named_parameters("image")).fill_(math.nan)
        with pytest.raises(DataError, match="check the model's weights and precision"):
            modalign.evaluate(model, [f"captioning[corpus={corpus},epochs=1,keep={kept}]:{folder}"], gap=False)
        assert not kept.exists()

    def test_needs_a_corpus(self, tmp_path: Path) -> None:
        with pytest.raises(RecipeError, match=r"captioning\[corpus=FILE\]"):
            prepare([f"captioning:{write_pairs(tmp_path / 'pairs', n=2)}"])
