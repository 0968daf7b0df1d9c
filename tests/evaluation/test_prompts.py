from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

import modalign
from modalign.data import sources, torchvision_sets
from modalign.data.records import Labelled
from modalign.embedder import Embedder
from modalign.encoders import Tower
from modalign.errors import DataError
from modalign.evaluation import tasks
from modalign.evaluation.class_names import recognised, templates
from modalign.evaluation.prompts import Prompts, read_prompts
from modalign.evaluation.suite import prepare
from modalign.features import text_features
from tests.data.packing import write_tar
from tests.data.published_layouts import LAYOUTS
from tests.tiny import tiny_open_clip


def read(source: str) -> Prompts:
    prompts, _ = read_prompts(source).of(labelled("x", "a"))
    return prompts


def test_single_is_the_papers_prompt_without_a_full_stop() -> None:
    assert read("single")("hot dog") == ["a photo of hot dog"]


def test_openai80_are_open_clips() -> None:
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    prompts = read("openai80")("hot dog")
    assert len(prompts) == 80
    assert prompts == [template("hot dog") for template in OPENAI_IMAGENET_TEMPLATES]


def test_a_file_may_use_either_placeholder_and_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes("\ufeffa drawing of {}.\r\n\r\n  {class}, sketched \n".encode())
    prompts = read(str(file))
    # A class name that itself looks like a placeholder is inserted as it is.
    assert prompts("{class} {}") == ["a drawing of {class} {}.", "{class} {}, sketched"]
    assert prompts.name == "mine.txt"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no template in it"),
        (b"\n \n", "no template in it"),
        (b"a photo of {}\na photo\n", r"mine.txt:2: 'a photo' holds 0 placeholders"),
        (b"\n{} and {class}\n", r"mine.txt:2: .* holds 2 placeholders"),
        (b"a {} of {}", r"mine.txt:1: .* holds 2 placeholders"),
        (b"\xff\xfe\xfa {}", "is not UTF-8 text"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_prompts(str(file))
    assert "\n" not in str(caught.value)


def test_an_unknown_name_tells_what_there_is() -> None:
    with pytest.raises(DataError, match="'openai79': neither single, openai80, clip-benchmark nor a data set's name"):
        read_prompts("openai79")


def test_a_mistyped_data_set_is_told_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"'cifra10': .*did you mean cifar10\?"):
        read_prompts("cifra10")


def labelled(spec: str, *names: str) -> Labelled:
    return Labelled(spec, (), names)


@pytest.mark.parametrize("source", ["clip-benchmark", "eurosat", "EuroSAT"])
def test_clip_benchmarks_templates_and_names_by_data_set(source: str) -> None:
    data = labelled("/data/eurosat/2750", "SeaLake", "AnnualCrop")
    prompts, named = read_prompts(source).of(data)
    assert named.class_names == ("lake or sea", "annual crop land")  # in the data's order: labels keep their meaning
    assert prompts("lake or sea")[0] == "a centered satellite photo of lake or sea."
    assert prompts.name == prompts.class_names == "clip-benchmark eurosat"


@pytest.mark.parametrize(
    ("spec", "names", "expected"),
    [
        ("hf:uoft-cs/cifar100@test", ("lawn_mower", "aquarium_fish"), ("lawn_mower", "aquarium_fish")),
        ("hf:ethz/food101@validation", ("apple_pie", "waffles"), ("apple pie", "waffles")),
        ("hf:cgarciae/cartoons_svhn:cropped_digits@test", ("0", "1"), None),
        ("hf:ufldl-stanford/svhn:cropped_digits@test", ("0", "10"), None),
        ("data/gtsrb/rows.csv", ("0", "1", "10", "2"), (0, 1, 10, 2)),
        ("data/imagenet-o", ("n03250847",), None),
        ("data/imagenet/val", ("n04356056", "n04355933"), ("sunglasses", "sunglasses")),
        ("datasets:data/wds_vtab-svhn@test", ("7", "0"), ("seven", "zero")),
        ("data/oxford_iiit_pet", ("shiba inu", "Abyssinian"), ("Shiba Inu", "Abyssinian")),
    ],
)
def test_classes_are_found_under_the_names_that_data_sets_give_them(
    spec: str, names: tuple[str, ...], expected: tuple[str | int, ...] | None
) -> None:
    if expected is None:
        with pytest.raises(DataError, match=r"no part of it is the name of|is no class of"):
            read_prompts("clip-benchmark").of(labelled(spec, *names))
        return
    known = recognised(spec)
    assert known is not None
    wanted = tuple(known.class_names[name] if isinstance(name, int) else name for name in expected)
    assert read_prompts("clip-benchmark").of(labelled(spec, *names))[1].class_names == wanted


def test_data_that_names_no_data_set_is_told_so() -> None:
    with pytest.raises(DataError, match=r"mine: no part of it is the name of a known data set.*name one of birdsnap"):
        read_prompts("clip-benchmark").of(labelled("data/mine", "a", "b"))


def test_a_file_goes_before_a_data_set_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pets").write_text("an icon of {}\n")
    prompts, _ = read_prompts("pets").of(labelled("x", "a"))
    assert prompts.templates == ("an icon of {}",)


def test_hub_class_labels_become_clip_benchmarks_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    names = ["apple_pie", "baby_back_ribs"]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = {"image": [Image.new("RGB", (4, 4), c) for c in ("red", "blue", "green")], "label": [1, 0, 1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "food101")
    read = sources.labelled(tmp_path / "food101")
    assert read.class_names == ("apple_pie", "baby_back_ribs")
    prompts, named = read_prompts("clip-benchmark").of(read)
    assert named.class_names == ("apple pie", "baby back ribs") and named.labels.tolist() == [1, 0, 1]
    assert prompts("apple pie") == ["a photo of apple pie, a type of food."]


def test_a_folder_in_clip_benchmarks_layout_brings_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "wds_cifar10"
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "WEBP", lossless=True)
    write_tar(folder / "test" / "0.tar", {"s0000000.cls": b"1", "s0000000.webp": buffer.getvalue()})
    (folder / "test" / "nshards.txt").write_text("1\n")
    (folder / "classnames.txt").write_text("cat\n\ndog\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}!\nthe {c}.\n")
    data = sources.labelled(f"wds:{folder}@test")
    prompts, named = read_prompts("clip-benchmark").of(data)
    assert named.class_names == ("cat", "", "dog") and prompts("dog") == ["a dog!", "the dog."]
    # A data set named by the user is that one, which this folder's classes are not.
    with pytest.raises(DataError, match="'' is no class of cifar10"):
        read_prompts("cifar10").of(data)
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}!\nno place\n")
    with pytest.raises(DataError, match=r"templates.txt:2: 'no place' holds 0 placeholders"):
        read_prompts("clip-benchmark").of(data)


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    torchvision_sets._opened.cache_clear()
    LAYOUTS["cifar10"](tmp_path / "cifar", monkeypatch)
    return f"torchvision:cifar10:{tmp_path / 'cifar'}@train"


def test_a_set_of_torchvision_is_judged_by_clip_benchmarks_prompts(cifar10: str, tmp_path: Path) -> None:
    """End to end against open_clip itself, picture by picture, class by class, as CLIP_benchmark does it."""
    model = modalign.load(tiny_open_clip(tmp_path / "model"))
    results = tasks.evaluate(model, [f"zero-shot:{cifar10}"], templates="clip-benchmark", resamples=50)
    (task,) = results.tasks
    assert task.protocol["prompts"] == task.protocol["class_names"] == "clip-benchmark cifar10"
    assert task.protocol["classes"] == 10 and len(task.protocol["templates"]) == 18

    peer = torchvision_sets.SETS["cifar10"].read(Path(cifar10.split(":")[2].removesuffix("@train")), "train")
    with torch.no_grad():
        columns = []
        for name in peer.classes:
            said = model.tokenize([template.replace("{}", name) for template in templates("cifar10")])
            unit = torch.nn.functional.normalize(model.encode_text(said), dim=-1).mean(0)
            columns.append(unit / unit.norm())
        pixels = torch.stack([model.preprocess(picture.convert("RGB")) for picture, _ in peer])
        image = torch.nn.functional.normalize(model.encode_image(pixels), dim=-1)
    scores, labels = image @ torch.stack(columns).T, torch.tensor(peer.targets)
    for k in (1, 5):
        hits = (scores.topk(k).indices == labels[:, None]).any(1).double()
        assert task.metrics[f"acc{k}"].outcomes.tolist() == hits.tolist()


def test_prompts_are_embedded_once_for_all_models_with_one_text_tower(cifar10: str, tmp_path: Path) -> None:
    """The store keeps them by the text side's weights: another image tower reads all of them."""
    first, second = (modalign.load(tiny_open_clip(tmp_path / "model")) for _ in range(2))
    with torch.no_grad():
        next(second.module.visual.parameters()).add_(0.1)
    suite = prepare([f"zero-shot:{cifar10}"], templates="clip-benchmark")
    assert len(suite.strings) == 10 * 18
    told = []
    for model in (first, second):
        embedder = Embedder(tmp_path / "store", batch_size=64)
        told.append(embedder.texts(Tower(model, "text"), suite.strings).passes)
        seen = tasks.encode(model, suite, store=tmp_path / "store", batch_size=64)
        assert torch.allclose(seen.text, text_features(model, suite.strings), atol=1e-5)
    assert [(passes.computed, passes.read) for passes in told] == [(180, 0), (0, 180)]


def test_imagenets_two_pairs_of_equal_names_are_judged_and_tie(tmp_path: Path) -> None:
    folders = ["n04355933", "n04356056", "n01440764"]  # two kinds of sunglasses, and tench
    for number, wnid in enumerate(folders):
        (tmp_path / "imagenet" / "val" / wnid).mkdir(parents=True)
        Image.new("RGB", (40, 40), (80 * number, 10, 10)).save(tmp_path / "imagenet" / "val" / wnid / "1.png")
    model = modalign.load(tiny_open_clip(tmp_path / "model"))
    spec = f"zero-shot:torchvision:imagenet1k:{tmp_path}/imagenet@val"
    (task,) = tasks.evaluate(model, [spec], templates="clip-benchmark", resamples=50).tasks
    # Sorted folders: tench, sunglasses, sunglasses.
    assert task.metrics["acc1"].outcomes.tolist()[1:] == [0, 0]
    with pytest.raises(DataError, match="are both called 'sunglasses'"):
        tasks.evaluate(model, [spec], templates="openai80", resamples=50)
