"""A store of frozen features: killed, damaged, shared, changed beneath — and read back as the network said."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modalign import embedder as embedder_module
from modalign import features, missing
from modalign.console import Reporter
from modalign.data import store_shards
from modalign.data.images import decode
from modalign.data.records import Pairs
from modalign.data.store_folder import StoreFolder
from modalign.data.store_listing import remove, stores
from modalign.embedder import Embedder, Stored
from modalign.encoders import Decoded, Tower, refuse_unsteady
from modalign.errors import DataError, ModelError, OutputError
from tests.training.toy import ToyEncoder, toy_pairs

ROOT = Path(__file__).resolve().parents[2]
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(missing, "BLOCK", 6)


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    """30 rows, 29 pictures; the last is a copy of the third under another name."""
    made = toy_pairs(tmp_path / "pictures", n=30)
    shutil.copyfile(made.paths[3], made.paths[29])
    return made


def asked(root: Path, **changes: Any) -> Embedder:
    return Embedder(root, **{"batch_size": 3, "reporter": Reporter(silent=True), **changes})


def images(root: Path, data: Pairs, model: Any = None, **changes: Any) -> Stored:
    encoder = model if model is not None and not isinstance(model, ToyEncoder) else Tower(model or ToyEncoder())
    return asked(root, **changes).images(encoder, data.paths, data.wheres)


def shards(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(root.glob("*/shard-*.safetensors"))}


# ---- what is read is what was computed ----------------------------------------------------------------------


def test_rows_are_the_networks_own_and_are_computed_once(tmp_path: Path, pairs: Pairs) -> None:
    model = ToyEncoder(dtype=torch.float64)
    first = images(tmp_path / "store", pairs, model)
    pixels = torch.stack([model.preprocess(decode(path)) for path in pairs.paths]).double()
    expected = model.encode_image(pixels).detach()
    torch.testing.assert_close(first.rows[:], expected, rtol=1e-12, atol=1e-15)
    assert first.rows[:].dtype == torch.float64 and first.rows.shape == (30, 6)
    assert (first.passes.computed, first.passes.read) == (29, 0)
    model.image_calls = 0
    again = images(tmp_path / "store", pairs, model)
    assert model.image_calls == 0 and (again.passes.computed, again.passes.read) == (0, 29)
    assert torch.equal(again.rows[:], first.rows[:])
    index = torch.tensor([29, 0, 7, 7, 3])
    assert torch.equal(again.rows[index], first.rows[:][index])
    assert torch.equal(again.rows[4:6], torch.cat(list(again.rows.split(4)))[4:6])
    assert torch.equal(again.rows[5], again.rows[:][5]) and len(again.rows[[]]) == 0
    assert str(again.passes) == "29 read from the store, 0 computed"


def test_batches_are_those_of_a_plain_pass_so_the_bits_are_too(tmp_path: Path) -> None:
    data = toy_pairs(tmp_path / "pictures", n=29)
    plain = features.image_features(ToyEncoder(), data.paths, data.wheres, batch_size=3)
    assert torch.equal(images(tmp_path / "store", data).rows[:], plain.features)
    said = asked(tmp_path / "store").texts(Tower(ToyEncoder(), "text"), data.captions)
    assert torch.equal(said.rows[:], features.text_features(ToyEncoder(), data.captions, batch_size=3))
    assert said.passes.computed == len(set(data.captions)) < len(data.captions)


def test_the_trunk_of_another_head_is_read_and_other_weights_are_computed(tmp_path: Path, pairs: Pairs) -> None:
    store, head, text, deep = tmp_path / "store", ToyEncoder(), ToyEncoder(), ToyEncoder()
    with torch.no_grad():
        head.module.visual["proj"].weight.mul_(2)
        text.module.text["hidden"].weight.mul_(2)
        deep.module.visual["hidden"].weight[0, 0] += 1e-6
    for part in ("features", "trunk"):
        images(store, pairs, Tower(ToyEncoder(), "image", part))
    assert images(store, pairs, Tower(head, "image", "trunk")).passes.computed == 0
    assert images(store, pairs, head).passes.computed == 29
    assert images(store, pairs, text).passes.computed == 0  # the other tower is none of the pictures' business
    assert images(store, pairs, deep).passes.computed == 29
    assert asked(store).texts(Tower(text, "text"), pairs.captions).passes.computed > 0


class OtherTransform(ToyEncoder):
    input_identity = property(lambda self: "toy, twice as wide")


@pytest.mark.parametrize(
    "changes", [{"model": OtherTransform()}, {"precision": "bf16"}, {"batch_size": 4}, {"dtype": torch.float16}]
)
def test_another_transform_or_way_to_compute_is_another_store(
    tmp_path: Path, pairs: Pairs, changes: dict[str, Any]
) -> None:
    images(tmp_path / "store", pairs)
    assert images(tmp_path / "store", pairs, **changes).passes.computed == 29
    assert len(stores(tmp_path / "store")) == 2


def test_another_library_version_is_another_store(
    tmp_path: Path, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    images(tmp_path / "store", pairs)
    monkeypatch.setattr(embedder_module, "versions", lambda: {"torch": "0.4"})
    assert images(tmp_path / "store", pairs).passes.computed == 29


def test_half_precision_is_half_the_size_read_back_as_float32_and_never_overflows(tmp_path: Path, pairs: Pairs) -> None:
    exact, half = images(tmp_path / "a", pairs), images(tmp_path / "b", pairs, dtype=torch.float16)
    assert half.rows[:].dtype == torch.float32
    assert torch.equal(half.rows[:], exact.rows[:].half().float()) and not torch.equal(half.rows[:], exact.rows[:])
    model = ToyEncoder()
    with torch.no_grad():
        model.module.visual["proj"].weight.mul_(1e6)
    with pytest.raises(DataError, match="float16"):
        images(tmp_path / "b", pairs, model, dtype=torch.float16)


# ---- what changed beneath -----------------------------------------------------------------------------------


def test_a_subset_serves_the_whole_and_the_whole_every_subset(tmp_path: Path, pairs: Pairs) -> None:
    store = tmp_path / "store"
    assert images(store, pairs.take(range(10))).passes.computed == 9
    whole = images(store, pairs)
    assert whole.passes.read == 9 + 1  # the copy of the third picture is known by its bytes
    part = images(store, pairs.take([20, 4, 11]))
    assert part.passes.computed == 0 and torch.equal(part.rows[:], whole.rows[[20, 4, 11]])


def test_a_changed_picture_is_computed_again_and_a_moved_or_touched_one_is_not(tmp_path: Path, pairs: Pairs) -> None:
    store = tmp_path / "store"
    before = images(store, pairs)
    pairs.paths[6].write_bytes(toy_pairs(tmp_path / "other", seed=1).paths[6].read_bytes())
    after = images(store, pairs)
    assert after.passes.computed == 1
    changed = (after.rows[:] != before.rows[:]).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [6]
    os.utime(pairs.paths[7], ns=(1, 1))
    assert images(store, pairs).passes.computed == 0
    (tmp_path / "pictures").rename(tmp_path / "moved")
    moved = Pairs("toy", tuple(type(r)(tmp_path / "moved" / r.path.name, r.captions, r.where) for r in pairs.rows))
    found = images(store, moved)
    assert found.passes.computed == 0 and torch.equal(found.rows[:], after.rows[:])


def test_pictures_recognised_by_their_bytes_are_read_only_once(
    tmp_path: Path, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modalign.data import store_lookup

    images(tmp_path / "store", pairs)
    os.utime(pairs.paths[7], ns=(1, 1))
    images(tmp_path / "store", pairs)
    monkeypatch.setattr(store_lookup, "picture_content", lambda picture: pytest.fail(f"{picture} was read"))
    assert images(tmp_path / "store", pairs).passes.computed == 0


def test_other_bytes_under_the_same_name_size_and_time_are_seen_by_verify(tmp_path: Path, pairs: Pairs) -> None:
    store, victim = tmp_path / "store", pairs.paths[6]
    before = images(store, pairs)
    stat, size = victim.stat(), victim.stat().st_size
    victim.write_bytes(pairs.paths[12].read_bytes().ljust(size, b"\0")[:size])
    os.utime(victim, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert victim.stat().st_size == size
    assert torch.equal(images(store, pairs).rows[:], before.rows[:])  # the fast path trusts the name
    seen = images(store, pairs, verify=True)
    assert seen.passes.computed == 1
    torch.testing.assert_close(seen.rows[6], seen.rows[12])
    assert torch.equal(images(store, pairs).rows[:], seen.rows[:])  # and from now on the name means the new bytes
    assert images(store, pairs, verify=True).passes.computed == 0


def test_bad_pictures_are_named_limited_and_tried_again(tmp_path: Path, pairs: Pairs) -> None:
    store = tmp_path / "store"
    pairs.paths[3].write_bytes(b"no picture")
    pairs.paths[8].unlink()
    with pytest.raises(DataError, match=r"2 of 29.*003\.png \(list:4\).*no such file"):
        images(store, pairs, max_bad=1)
    done = images(store, pairs, max_bad=2)
    assert [row.where for row in done.bad] == ["list:4", "list:9"]
    assert done.kept.tolist() == [i for i in range(30) if i not in (3, 8)] and len(done.rows) == 28
    again = images(store, pairs, max_bad=2)
    assert again.bad == done.bad and again.passes.computed == 0 and again.passes.read == 27
    with pytest.raises(DataError, match="2 of 29"):  # what is stored does not let a bad picture through
        images(store, pairs, max_bad=0)
    for victim in (3, 8):
        shutil.copyfile(pairs.paths[5], pairs.paths[victim])
    assert images(store, pairs).passes.computed == 0  # the fifth picture's bytes are known


def test_a_picture_that_changes_while_it_is_read_is_not_stored(tmp_path: Path, pairs: Pairs) -> None:
    model = ToyEncoder()
    encode = model.image_trunk

    def meddling(pixels: Tensor) -> Tensor:
        pairs.paths[2].write_bytes(pairs.paths[4].read_bytes())
        return encode(pixels)

    model.image_trunk = meddling  # type: ignore[method-assign]
    with pytest.raises(DataError, match=r"list:3: .*002\.png changed while it was read"):
        images(tmp_path / "store", pairs, model)
    assert not shards(tmp_path / "store")


# ---- damage -------------------------------------------------------------------------------------------------


def test_a_flipped_byte_anywhere_is_never_read(tmp_path: Path, pairs: Pairs, caplog: pytest.LogCaptureFixture) -> None:
    store = tmp_path / "store"
    whole = images(store, pairs).rows[:]
    (victim, *_), written = sorted(store.glob("*/shard-*")), shards(store)
    content = victim.read_bytes()
    rebuilt = 0
    for position in range(0, len(content), 17):
        broken = bytearray(content)
        broken[position] ^= 1 << position % 8
        victim.write_bytes(broken)
        caplog.clear()
        found = images(store, pairs)
        assert torch.equal(found.rows[:], whole), position
        rebuilt += found.passes.computed == 6
        assert found.passes.computed in (0, 6) and bool(found.passes.computed) == ("passing over" in caplog.text)
        del found
        for path in store.glob("*/shard-*"):
            path.unlink()
        for name, data in written.items():
            (victim.parent / name).write_bytes(data)
    assert rebuilt > 0.9 * len(range(0, len(content), 17))  # what is not is white space in the header


@pytest.mark.parametrize("length", [0, 5, 200, -1])
def test_a_truncated_shard_is_computed_again(tmp_path: Path, pairs: Pairs, length: int) -> None:
    store = tmp_path / "store"
    whole = images(store, pairs).rows[:]
    victim = sorted(store.glob("*/shard-*"))[2]
    written = victim.read_bytes()
    victim.write_bytes(written[:length])
    found = images(store, pairs)
    assert found.passes.computed == 6 and torch.equal(found.rows[:], whole)
    assert not victim.exists() and written in shards(store).values()  # rebuilt to the byte, under a new number
    assert images(store, pairs).passes.computed == 0


# ---- kill -9 ------------------------------------------------------------------------------------------------


class Slow(ToyEncoder):
    """Gives a kill time to fall anywhere."""

    def image_trunk(self, pixels: Tensor) -> Tensor:
        time.sleep(0.004)
        return super().image_trunk(pixels)


def killed_after(seconds: float, root: Path, data: Pairs) -> bool:
    """Embeds in a process of its own and kills it; whether it was still at work."""
    process = FORK.Process(target=images, args=(root, data, Slow()), kwargs={"max_bad": 1})
    process.start()
    time.sleep(seconds)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


def test_killed_at_random_moments_and_resumed_equals_undisturbed_byte_for_byte(tmp_path: Path, pairs: Pairs) -> None:
    pairs.paths[10].write_bytes(b"no picture")  # shortens a batch; must not shift the later ones
    begin = time.perf_counter()
    whole = images(tmp_path / "whole", pairs, Slow(), max_bad=1)
    duration = time.perf_counter() - begin
    moments, killed = random.Random(0), 0
    for number in range(3):
        root = tmp_path / f"store{number}"
        while killed_after(moments.uniform(0.1, 0.9) * duration, root, pairs):
            killed += 1
            if killed > 12:
                break
        resumed = images(root, pairs, Slow(), max_bad=1)
        assert torch.equal(resumed.rows[:], whole.rows[:]) and resumed.bad == whole.bad
        assert shards(root) == shards(tmp_path / "whole")
        assert not list(root.glob("*/*.tmp"))
    assert killed >= 2


@pytest.mark.parametrize(
    ("call", "count"), [("fsync", 1), ("fsync", 4), ("fsync", 9), ("replace", 1), ("replace", 2), ("replace", 6)]
)
def test_cut_off_inside_a_write_leaves_no_shard_that_is_not_whole(
    tmp_path: Path, pairs: Pairs, monkeypatch: pytest.MonkeyPatch, call: str, count: int
) -> None:
    class Killed(BaseException):
        pass

    whole = images(tmp_path / "whole", pairs)
    target: Any = os if call == "fsync" else Path
    real, left = getattr(target, call), [count]

    def dying(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(target, call, dying)
        with pytest.raises(Killed):
            images(tmp_path / "store", pairs)
    resumed = images(tmp_path / "store", pairs)
    assert torch.equal(resumed.rows[:], whole.rows[:]) and shards(tmp_path / "store") == shards(tmp_path / "whole")
    assert not list((tmp_path / "store").glob("*/*.tmp"))


SCRIPT = """
import sys
from pathlib import Path
import modalign
from modalign import missing
missing.BLOCK = 8
modalign.embed(sys.argv[1], sys.argv[2], out=sys.argv[3], batch_size=4, device="cpu", silent=True)
"""


@pytest.mark.slow
def test_real_processes_killed_at_20_moments_leave_stores_that_resume_to_the_byte(tmp_path: Path) -> None:
    from tests.tiny import tiny_open_clip, write_pairs

    spec, data = tiny_open_clip(tmp_path / "clip"), write_pairs(tmp_path / "pairs", n=400, captions_per_image=2)

    def start(out: Path) -> subprocess.Popen[bytes]:
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-c", SCRIPT, spec, data, str(out)], env=environment)

    def begun(out: Path) -> bool:
        return any(out.glob("*/shard-*"))

    begin = time.perf_counter()
    process = start(tmp_path / "whole")
    while not begun(tmp_path / "whole"):
        time.sleep(0.01)
    writing = time.perf_counter()
    assert process.wait() == 0
    until, duration = writing - begin, time.perf_counter() - writing
    moments, killed = random.Random(0), 0
    for number in range(20):
        out = tmp_path / f"store{number}"
        process = start(out)
        while not begun(out) and process.poll() is None and time.perf_counter() - begin < 600:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 1) * duration)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        assert start(out).wait() == 0
        assert shards(out) == shards(tmp_path / "whole")
    assert killed >= 10, (until, duration)


# ---- several at once ----------------------------------------------------------------------------------------


def test_two_processes_that_want_the_same_rows_compute_them_once(tmp_path: Path, pairs: Pairs) -> None:
    counts = FORK.Queue()

    def work() -> None:
        counts.put(images(tmp_path / "store", pairs, Slow()).passes.computed)

    both = [FORK.Process(target=work) for _ in range(2)]
    for process in both:
        process.start()
    assert sorted(counts.get(timeout=60) for _ in both) == [0, 29]
    for process in both:
        process.join()
    assert torch.equal(images(tmp_path / "store", pairs).rows[:], images(tmp_path / "alone", pairs).rows[:])


def test_a_reader_goes_on_while_a_writer_adds(tmp_path: Path, pairs: Pairs) -> None:
    part = pairs.take(range(12))
    first = images(tmp_path / "store", part)
    process = FORK.Process(target=images, args=(tmp_path / "store", pairs, Slow()))
    process.start()
    try:
        for _ in range(5):
            again = images(tmp_path / "store", part)
            assert again.passes.computed == 0 and torch.equal(again.rows[:], first.rows[:])
    finally:
        process.join()
    assert process.exitcode == 0


def test_a_store_in_use_is_not_removed_and_an_idle_one_is(tmp_path: Path, pairs: Pairs) -> None:
    root = tmp_path / "store"
    held = images(root, pairs)
    (info,) = stores(root)
    assert (info.rows, info.state, info.damaged, info.title) == (29, "in use", 0, "toy:0 (image features)")
    assert info.bytes > 29 * 6 * 4 and abs(info.used - time.time()) < 60
    with pytest.raises(OutputError, match="in use"):
        remove(root, [info.key[:6]])
    assert remove(root, everything=True) == [] and len(held.rows[:]) == 30
    del held
    assert [known.state for known in stores(root)] == ["idle"]
    with pytest.raises(DataError, match="fits no store"):
        remove(root, ["zzz"])
    assert remove(root, older_than=1) == []
    os.utime(root / info.key / ".use", (0, 0))
    assert [gone.key for gone in remove(root, older_than=1)] == [info.key]
    assert stores(root) == [] and list(root.iterdir()) == []
    assert images(root, pairs).passes.computed == 29


def test_an_opener_that_waited_for_a_removal_makes_a_new_folder(tmp_path: Path) -> None:
    root = tmp_path / "store"
    for _ in range(20):
        process = FORK.Process(target=lambda: remove(root, everything=True))
        StoreFolder(root, {"encoder": "x"}, "x")
        process.start()
        folder = StoreFolder(root, {"encoder": "x"}, "x")
        folder.add(0, "r", names=NONE, contents=NONE, keys=NONE, rows=np.empty((0, 0), np.float32))
        process.join()
        assert (folder.path / "store.json").is_file() and shards(root)
        del folder


NONE = store_shards.table([])


# ---- refusals -----------------------------------------------------------------------------------------------


class Encoder(Decoded):
    """A vision encoder in the widest sense: something with the protocol's members."""

    def __init__(self, module: nn.Module, transform: Any = None) -> None:
        self.module = module
        if transform is not None:
            self.preprocess = transform  # type: ignore[method-assign]


def random_transforms() -> Iterator[Any]:
    from torchvision import transforms as T

    yield pytest.param(T.Compose([T.RandomHorizontalFlip(), T.ToTensor()]), "RandomHorizontalFlip", id="flip")
    rare = T.Compose([T.Compose([T.RandomErasing(p=1e-9)])])
    yield pytest.param(T.Compose([T.ToTensor(), rare]), "RandomErasing", id="nested and rare")
    yield pytest.param(lambda image: torch.rand(3, 2, 2), "function", id="noise")


@pytest.mark.parametrize(("transform", "told"), random_transforms())
def test_a_random_transform_is_refused(transform: Any, told: str) -> None:
    with pytest.raises(ModelError, match=f"transform is random .{told}.*evaluation transform"):
        refuse_unsteady(Encoder(nn.Identity(), transform))


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)), r"1 \(Dropout\) has p = 0.1"),
        (nn.Sequential(nn.TransformerEncoderLayer(4, 1, dropout=0.2)), r"self_attn.*has dropout = 0.2"),
        (nn.Sequential(nn.BatchNorm2d(3)), r"0 \(BatchNorm2d\) takes its statistics from the batch"),
    ],
)
def test_dropout_and_batch_statistics_are_refused_and_eval_is_not(module: nn.Module, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        refuse_unsteady(Encoder(module.train()))
    refuse_unsteady(Encoder(module.eval()))


def test_what_looks_random_but_is_not_passes() -> None:
    refuse_unsteady(Encoder(nn.Sequential(nn.Dropout(0.0), nn.Linear(1, 1)).train()))
    with pytest.raises(ModelError, match="statistics"):  # never has any of its own
        refuse_unsteady(Encoder(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)).eval()))


def test_the_size_is_told_before_it_is_written_and_a_full_disk_is_refused(
    tmp_path: Path, pairs: Pairs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images(tmp_path / "store", pairs, reporter=Reporter())
    assert "will write 2.1 kB to " in capsys.readouterr().err  # 29 × (6 × 4 + 48) bytes
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2000))
    with pytest.raises(OutputError, match=r"needs 2\.1 kB and its disk has 2\.0 kB free"):
        images(tmp_path / "other", pairs)
    assert not shards(tmp_path / "other")


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path: Path, pairs: Pairs) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        images(tmp_path / "file" / "store", pairs)


def test_a_place_where_no_folder_can_be_is_refused_at_once(pairs: Pairs) -> None:
    """Making it fails with the error of a folder that was removed meanwhile, which is tried again."""
    with pytest.raises(OutputError, match=r"/proc/none/.* cannot be written"):
        images(Path("/proc/none"), pairs)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_never_stored(tmp_path: Path, pairs: Pairs, value: float) -> None:
    model = ToyEncoder()
    encode = model.project_image
    model.project_image = lambda hidden: encode(hidden).index_fill(0, torch.tensor([1]), value)  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=r"gives NaN or infinity for list:3; check the model's"):  # list:2 is list:1
        images(tmp_path / "store", pairs, model)
    assert not shards(tmp_path / "store")
