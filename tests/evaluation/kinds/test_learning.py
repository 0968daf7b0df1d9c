"""The kinds that learn, and the clusterings, on real pictures through a tiny real model."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modalign.errors import DataError, RecipeError
from modalign.evaluation.cross_modal import cross_modal
from modalign.evaluation.few_shot import few_shot
from modalign.evaluation.gate import judge
from modalign.evaluation.knn import knn_probe_outcomes
from modalign.evaluation.linear_probe import UNCHOSEN, fit_probe
from modalign.evaluation.pairing import check_comparable
from modalign.evaluation.splits import stratified_split
from modalign.evaluation.suite import prepare
from modalign.evaluation.tasks import Results, evaluate
from modalign.features import image_features, text_features
from modalign.models import load
from modalign.models.dual_encoder import DualEncoder
from tests.tiny import tiny_open_clip

NAMES = ["blue", "green", "red"]
LABELS = torch.arange(36) % 3


def write(folder: Path, seed: int, names: list[str] = NAMES, rows: int = 36) -> Path:
    """Noisy pictures of three colours, with a caption and a label each."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text", "label"])
        for number in range(rows):
            pixels = rng.integers(0, 200, (32, 32, 3))
            pixels[..., 2 - number % 3] += rng.integers(0, 40)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
            writer.writerow([f"{number}.png", f"view {number % 5} of {NAMES[number % 3]}", names[number % 3]])
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DualEncoder:
    return load(tiny_open_clip(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write(folder / "train", 0)
    write(folder / "test", 1)
    return folder


def features(model: DualEncoder, folder: Path, part: str = "features") -> torch.Tensor:
    paths = [folder / f"{number}.png" for number in range(36)]
    return image_features(model, paths, ["" for _ in paths], part=part).features  # type: ignore[arg-type]


@pytest.mark.parametrize(("option", "part"), [("projected", "features"), ("penultimate", "trunk")])
def test_a_probe_on_a_named_training_set_is_the_one_made_by_hand(
    model: DualEncoder, root: Path, option: str, part: str
) -> None:
    results = evaluate(model, [f"linear-probe[train={root}/train,features={option}]:{root}/test"], resamples=50)
    probe = fit_probe(features(model, root / "train", part), LABELS, 3)
    by_hand = probe.outcomes(features(model, root / "test", part), LABELS)["acc1"]
    metric = results.metrics["linear_probe.acc1"]
    np.testing.assert_array_equal(metric.outcomes, by_hand)
    recalls = [by_hand[c == LABELS].mean() for c in range(3)]
    assert results.metrics["linear_probe.mean_per_class_recall"].value == pytest.approx(np.mean(recalls))
    protocol, notes = results.tasks[0].protocol, results.tasks[0].notes
    assert protocol["train"] == f"{root}/train" and protocol["train_samples"] == protocol["samples"] == 36
    assert protocol["features"].startswith(option) and "not standardised" in protocol["scale"]
    assert notes["penalty"] == probe.notes["penalty"] and notes["converged"]


def test_without_a_training_set_half_of_each_class_is_learned_from_and_said(model: DualEncoder, root: Path) -> None:
    results = evaluate(model, [f"linear-probe[seed=3]:{root}/test", f"few-shot[shots=2,seeds=2]:{root}/test"])
    held = stratified_split(LABELS, 0.5, 3)
    image = features(model, root / "test")
    groups = torch.arange(36)
    probe = fit_probe(image[~held], LABELS[~held], 3, seed=3, groups=groups[~held])
    metric = results.metrics["linear_probe.acc1"]
    np.testing.assert_array_equal(metric.outcomes, probe.outcomes(image[held], LABELS[held])["acc1"])
    assert metric.clusters is not None and metric.clusters.tolist() == held.nonzero().flatten().tolist()
    assert results.tasks[0].protocol["train"].startswith("half of each class, drawn with seed 3")
    held = stratified_split(LABELS, 0.5, 0)
    (shots,) = few_shot(image[~held], LABELS[~held], image[held], LABELS[held], 3, shots=[2], seeds=2)
    np.testing.assert_allclose(results.metrics["few_shot.acc1_2shot"].outcomes, shots.outcomes.mean(0))
    assert results.tasks[1].notes["acc1_2shot"]["over_draws"] == shots.accuracies


def test_neighbours_among_training_pictures(model: DualEncoder, root: Path) -> None:
    results = evaluate(model, [f"knn[train={root}/train,k=3]:{root}/test"], resamples=50)
    by_hand = knn_probe_outcomes(features(model, root / "train"), LABELS, features(model, root / "test"), LABELS, 3)
    np.testing.assert_array_equal(results.metrics["knn.acc1"].outcomes, by_hand)
    assert results.tasks[0].protocol["k"] == 3


def test_transfer_between_pictures_and_captions(model: DualEncoder, root: Path) -> None:
    tasks = [f"cross-modal[text=captions]:{root}/test", f"cross-modal:{root}/test"]
    results = evaluate(model, tasks, resamples=50)
    held = stratified_split(LABELS, 0.5, 0)
    image = features(model, root / "test")
    text = text_features(model, [f"view {n % 5} of {NAMES[n % 3]}" for n in range(36)])
    learn, judged = ({"image": (image[m], LABELS[m]), "text": (text[m], LABELS[m])} for m in (~held, held))
    by_hand = cross_modal(learn, judged, 3)
    found = results.tasks[0].metrics
    assert set(found) == {*by_hand.outcomes, *by_hand.ratios}
    for name, outcomes in {**by_hand.outcomes, **by_hand.ratios}.items():
        np.testing.assert_allclose(found[name].outcomes, outcomes)
    assert results.tasks[0].protocol["captions_on_both_sides"] > 0

    prompts = text_features(model, [f"a photo of {name}" for name in NAMES])
    probe = fit_probe(prompts, torch.arange(3), 3, penalties=[UNCHOSEN])
    by_prompt = results.tasks[1].metrics
    np.testing.assert_array_equal(
        by_prompt["text_to_image"].outcomes, probe.outcomes(image[held], LABELS[held])["acc1"]
    )
    within = by_prompt["image_to_image"].value
    ratio = by_prompt["text_to_image"].value / within
    assert by_prompt["text_to_image_transfer"].value == pytest.approx(ratio)


def test_joint_and_image_clustering(model: DualEncoder, root: Path) -> None:
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    names = [f"clustering[text=captions,seeds=2]:{root}/test", f"image-clustering[seeds=2]:{root}/test"]
    results = evaluate(model, names, resamples=50)
    image = torch.nn.functional.normalize(features(model, root / "test"))
    text = torch.nn.functional.normalize(text_features(model, [f"view {n % 5} of {NAMES[n % 3]}" for n in range(36)]))
    for name, points, truth in (
        ("clustering", torch.cat([image, text]), LABELS.repeat(2)),
        ("image_clustering", image, LABELS),
    ):
        runs = [KMeans(3, n_init=10, random_state=seed).fit_predict(points.numpy()) for seed in range(2)]
        expected = [adjusted_rand_score(truth.numpy(), run) for run in runs]
        result = next(r for r in results.tasks if r.task == name)
        assert result.notes["ari"]["over_seeds"] == pytest.approx(expected, abs=1e-12)
        assert result.metrics["ari"].value == pytest.approx(np.mean(expected), abs=1e-12)
        assert len(result.metrics["ari"].outcomes) == len(truth)
        assert set(result.metrics) == {"ari", "nmi", "v_measure"}


def test_fine_tuning_is_told_beside_what_it_forgets(model: DualEncoder, root: Path) -> None:
    task = f"finetune[train={root}/train,scope=last:1,epochs=1,lr=1e-3,seeds=2,other={root}/test]:{root}/test"
    results = evaluate(model, [task, f"zero-shot:{root}/test"], resamples=50)
    zero_shot = results.metrics["zero_shot.acc1"].value
    found, notes = results.tasks[0].metrics, results.tasks[0].notes
    assert found["acc1"].value == pytest.approx(np.mean(notes["acc1"]["over_seeds"]))
    assert found["gain"].value == pytest.approx(found["acc1"].value - zero_shot)
    assert found["forgetting"].value == pytest.approx(zero_shot - found["other_acc1"].value)
    assert not found["forgetting"].higher_is_better
    again = evaluate(model, [task], resamples=50)
    assert again.tasks[0].notes == notes


def test_each_picture_is_decoded_and_encoded_once_over_all_of_them(
    model: DualEncoder, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, encoded = 0, 0
    preprocess, trunk = model.preprocess, model.image_trunk

    def decode(image: Image.Image) -> torch.Tensor:
        nonlocal decoded
        decoded += 1
        return preprocess(image)

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        nonlocal encoded
        encoded += len(pixels)
        return trunk(pixels)

    monkeypatch.setattr(model, "preprocess", decode)
    monkeypatch.setattr(model, "image_trunk", encode)
    kinds = [
        "zero-shot",
        "retrieval",
        "linear-probe",
        "linear-probe[features=penultimate,rule=adamw]",
        "few-shot[shots=1,seeds=1]",
    ]
    kinds += ["knn", "cross-modal", "clustering[seeds=1]", "image-clustering[seeds=1]", "finetune[scope=head]"]
    tasks = [f"{kind}:{root}/test" for kind in kinds] + [f"linear-probe[train={root}/train,rule=adamw]:{root}/test"]
    evaluate(model, tasks, resamples=50, gap=False)
    assert decoded == encoded == 72


def test_fine_tuning_added_to_what_is_kept_finds_its_second_set(model: DualEncoder, root: Path, tmp_path: Path) -> None:
    """Only what is pending is embedded: the second set's pictures and prompts are part of it."""
    probe, tuned = f"knn:{root}/train", f"finetune[scope=head,epochs=1,seeds=1,other={root}/test]:{root}/train"
    evaluate(model, [probe, tuned.replace("epochs=1", "epochs=2")], resamples=20, store=tmp_path)
    kept = evaluate(model, [probe, tuned], resamples=20, store=tmp_path)
    assert kept.tasks[1].to_dict() == evaluate(model, [probe, tuned], resamples=20).tasks[1].to_dict()


def test_results_are_kept_whole_and_compared_by_the_gate(model: DualEncoder, root: Path, tmp_path: Path) -> None:
    tasks = [
        f"linear-probe[rule=adamw]:{root}/test",
        f"few-shot[shots=1,seeds=2]:{root}/test",
        f"clustering[seeds=2]:{root}/test",
    ]
    first = evaluate(model, tasks, resamples=50)
    first.save(tmp_path / "results.json")
    read = Results.load(tmp_path / "results.json")
    assert [result.notes for result in read.tasks] == [result.notes for result in first.tasks]
    assert judge(first, read).worst == "not worse"


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("linear-probe[shots=3]:{root}/test", "no option 'shots'"),
        ("linear-probe[features=hidden]:{root}/test", "projected or penultimate"),
        ("few-shot[shots=0]:{root}/test", "pictures a class"),
        ("few-shot[shots=2/2]:{root}/test", "pictures a class"),
        ("finetune[scope=everything]:{root}/test", "full, last:N, lora or head"),
        ("finetune[lr=7]:{root}/test", "a learning rate between 0 and 1"),
    ],
)
def test_options_that_cannot_be_taken_are_named(root: Path, task: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        prepare([task.format(root=root)])


def test_data_that_does_not_fit_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"36 pictures of .* are in train="):
        prepare([f"linear-probe[train={root}/test]:{root}/test"])
    with pytest.raises(DataError, match=r"36 pictures of other=.* are learned from"):
        prepare([f"finetune[train={root}/train,other={root}/train]:{root}/test"])
    write(tmp_path / "else", 5, ["blue", "green", "pink"])
    with pytest.raises(DataError, match="class 'pink' is not among the 3 of train="):
        prepare([f"knn[train={root}/train]:{tmp_path}/else"])
    folders = tmp_path / "folders"
    for name in NAMES:
        (folders / name).mkdir(parents=True)
        (folders / name / "a.png").write_bytes((root / "test" / f"{NAMES.index(name)}.png").read_bytes())
    with pytest.raises(DataError):
        prepare([f"clustering[text=captions]:{folders}"])


@pytest.mark.parametrize(
    ("task", "changed", "key"),
    [
        ("linear-probe[train=train,rule=adamw]:test", ("train", "4.png", "5.png"), "training examples"),
        ("few-shot[train=train,shots=1,seeds=1]:test", ("train", "4.png", "40.png"), "training examples"),
        ("knn[train=train]:test", ("train", ",green", ",blue"), "training examples"),
        ("linear-probe[rule=adamw]:test", ("test", "4.png", "40.png"), "examples"),
        ("cross-modal[text=captions]:test", ("test", "view 3", "sight 3"), "texts"),
        ("clustering[text=captions,seeds=1]:test", ("test", "view 3", "sight 3"), "texts"),
        ("finetune[train=train,scope=head,epochs=1,seeds=1]:test", ("train", ",green", ",blue"), "training examples"),
        ("finetune[scope=head,epochs=1,seeds=1,other=train]:test", ("train", ",green", ",blue"), "other examples"),
    ],
)
def test_what_was_learned_from_or_said_otherwise_is_not_compared(
    model: DualEncoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    changed: tuple[str, str, str],
    key: str,
) -> None:
    """The specs stay as they are; only what they hold is another."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("train", "test")):
        write(tmp_path / name, seed)
        (tmp_path / name / "40.png").write_bytes((tmp_path / name / "4.png").read_bytes())
    before = evaluate(model, [task], resamples=20)
    check_comparable(before, evaluate(model, [task], resamples=20))
    folder, old, new = changed
    table = tmp_path / folder / "metadata.csv"
    head, *rows = table.read_text().splitlines()
    at = next(number for number, row in enumerate(rows) if old in row)
    rows[at] = rows[at].replace(old, new)
    table.write_text("\n".join([head, *rows]))
    with pytest.raises(DataError, match=rf"^\w+: (training )?{key} differs, .* after: evaluate both on the same"):
        check_comparable(before, evaluate(model, [task], resamples=20))


def test_shots_that_no_class_has_are_left_out_and_said(model: DualEncoder, root: Path, tmp_path: Path) -> None:
    few = write(tmp_path / "few", 7, rows=13)  # 5, 4 and 4 pictures
    task = f"few-shot[train={few},shots=%s,seeds=2]:{root}/test"
    found = evaluate(model, [task % "4/5/8/16"], resamples=20).tasks[0]
    assert set(found.metrics) == {"acc1_4shot", "acc1_5shot"} == set(found.notes)
    assert found.protocol["shots_left_out"] == "8, 16: no class has so many pictures to learn from"
    assert found.protocol["fewest_of_a_class"] == 4
    assert "shots_left_out" not in evaluate(model, [task % "2"], resamples=20).tasks[0].protocol
    with pytest.raises(DataError, match=r"few: no class has 8 pictures to learn from \(5 at most\); ask for fewer"):
        evaluate(model, [task % "8/16"], resamples=20)
