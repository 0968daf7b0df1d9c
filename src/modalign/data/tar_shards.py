"""WebDataset shards: tar files whose members are grouped into samples by their names.

Each tar's headers are read once and every picture's place is kept, so that rows are reached in any order by one read;
captions and labels, being small, are read at once.
"""

from __future__ import annotations

import json
import logging
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from modalign.data.bad_rows import Complaint
from modalign.data.files import IMAGE_SUFFIXES
from modalign.data.found import LABEL_COLUMNS, TEXT_COLUMNS, Columns, Found, Want
from modalign.data.pictures import Container, Member, relative_names
from modalign.errors import DataError

logger = logging.getLogger("modalign")
IMAGES = frozenset(suffix[1:] for suffix in IMAGE_SUFFIXES)
TEXTS = ("txt", "caption", "captions", "text", "json")
LABELS = ("cls", "json")
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7z": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
# Up to the first dot of the last part, as the webdataset library has it.
KEY_AND_ENDING = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")


@dataclass
class _Sample:
    """The files of one key: ending → its place."""

    files: dict[str, Member] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TarShards:
    """Tar files read as one table.

    Attributes:
        shards: in order.
        split: the split, of a folder of splits.
    """

    shards: tuple[Path, ...]
    split: str = ""

    def rows(self, columns: Columns, want: Want, bad: list[Complaint]) -> Iterator[Found]:
        """One row a sample, in the order of the shards."""
        labels = relative_names(self.shards, [str(shard) for shard in self.shards])
        lines = beside(self.shards[0], "nshards.txt") is not None  # how CLIP_benchmark marks its folders
        for shard, label in zip(self.shards, labels, strict=True):
            for key, sample in _samples(shard).items():
                yield _found(f"{label}: {key}", sample, columns, want, lines)

    def class_names(self, columns: Columns) -> tuple[str, ...] | None:
        """The lines of `classnames.txt` beside the tars or a folder above, where there is one; an empty one counts."""
        path = beside(self.shards[0], "classnames.txt")
        if path is None:
            return None
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read ({error}); write it as UTF-8, a class a line") from None
        # CLEVR's middle distance is a class without a name: leaving its line out would number all after it wrongly.
        return tuple(line.strip() for line in lines)


def shards(spec: str, pattern: str) -> TarShards:
    """The tar files that a pattern stands for.

    Args:
        spec: as written, for messages.
        pattern: paths with `{000..009}`, `{a,b}` and `*`, joined by "::"; or a folder of tars; or `<folder>@<split>`,
            the tars of a folder below it.

    Raises:
        DataError: there is no such file, or one that is no plain tar.
    """
    split = ""
    if "::" not in pattern and not pattern.endswith(".tar") and not Path(pattern).expanduser().is_dir():
        root, at, name = pattern.rpartition("@")
        if at and (Path(root).expanduser() / name).is_dir():
            pattern, split = str(Path(root) / name), name
    found: list[Path] = []
    for part in pattern.split("::"):
        if not part.strip(":"):
            raise DataError(f"{spec} names no tar file; write wds:<folder> or wds:<pattern>, joined by ::")
        if re.match(r"[a-z0-9]+:", part):
            raise DataError(f"{spec}: {part} is not on this machine; fetch the tar files and name their folder")
        for text in _braces(part):
            found += _files(spec, Path(text).expanduser().absolute())
    return TarShards(tuple(dict.fromkeys(found)), split)


def _files(spec: str, path: Path) -> list[Path]:
    if path.is_dir():
        matches = sorted(path.glob("*.tar"), key=_natural)
        if not matches:
            raise DataError(
                f"{spec}: no *.tar in {path}; name the folder that holds the tar files, or <folder>@<split>"
            )
        return matches
    if path.is_file():
        return [path]
    if re.search(r"[*?\[]", str(path)):
        fixed = Path(*path.parts[: _first_pattern(path)])
        matches = sorted(fixed.glob(str(path.relative_to(fixed))), key=_natural)
        if not matches:
            raise DataError(f"{spec}: no file matches {path}; check the pattern")
        return matches
    raise DataError(f"{spec}: no such file {path}; check the pattern, or fetch the missing tar")


def _first_pattern(path: Path) -> int:
    return next(i for i, part in enumerate(path.parts) if re.search(r"[*?\[]", part))


def _braces(text: str) -> list[str]:
    """ "a{00..02}.tar" → a00.tar, a01.tar, a02.tar; "{x,y}" → x, y; as shells do it."""
    found = re.search(r"\{([^{}]*)\}", text)
    if not found:
        return [text]
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", found[1]):
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        inside = [str(n).zfill(width) for n in range(int(numbers[1]), int(numbers[2]) + 1)]
    else:
        inside = found[1].split(",")
    rests = _braces(text[found.end() :])
    return [text[: found.start()] + part + rest for part in inside for rest in rests]


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts 2.tar before 10.tar."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def beside(shard: Path, name: str) -> Path | None:
    """A file that lies beside a tar, or in the folder above."""
    return next((path for path in (shard.parent / name, shard.parent.parent / name) if path.is_file()), None)


# ---- one shard ----------------------------------------------------------------------------------------------


def _samples(shard: Path) -> dict[str, _Sample]:
    samples: dict[str, _Sample] = {}
    last, ignored = "its beginning", list[str]()
    try:
        container = Container.of(shard)
        with shard.open("rb") as file:
            _refuse_compressed(shard, file.read(6))
            file.seek(0)
            try:
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    while (entry := tar.next()) is not None:
                        tar.members = []  # type: ignore[attr-defined]  # else every header ever read is kept
                        last = entry.name
                        if not _add(samples, container, entry):
                            ignored.append(entry.name)
                    end = tar.offset
            except tarfile.TarError as error:
                raise DataError(_broken(shard, last, str(error))) from None
            if not _ends_in_zeros(file, end):
                raise DataError(_broken(shard, last, "no end mark follows, or something follows it"))
    except OSError as error:
        raise DataError(f"{shard} cannot be read ({error.strerror or error}); check the file") from None
    if ignored:
        some = ", ".join(ignored[:3]) + (", …" if len(ignored) > 3 else "")
        logger.warning("%s: %d files that are named as no sample are left out: %s", shard, len(ignored), some)
    return samples


def _ends_in_zeros(file: BinaryIO, end: int) -> bool:
    """Whether the end mark follows: tarfile takes any header it cannot read for the end, only zeros are one."""
    file.seek(end)
    mark = file.read(512)
    rests = iter(lambda: file.read(1 << 20), b"")
    return len(mark) == 512 and not any(mark) and not any(any(rest) for rest in rests)


def _broken(shard: Path, last: str, reason: str) -> str:
    return f"{shard} is truncated, damaged or no tar, near {last} ({reason}); fetch or pack it again"


def _refuse_compressed(shard: Path, begin: bytes) -> None:
    for mark, kind in COMPRESSED.items():
        if begin.startswith(mark):
            raise DataError(f"{shard} is compressed ({kind}), so no picture in it can be reached alone; uncompress it")


def _add(samples: dict[str, _Sample], container: Container, entry: tarfile.TarInfo) -> bool:
    """Whether an entry belongs to a sample, or is a folder or a note of the packer's own."""
    name = entry.name.removeprefix("./")
    if entry.isdir() or name.startswith("__"):
        return True
    split = KEY_AND_ENDING.fullmatch(name)
    if split and (entry.islnk() or entry.issym()):
        raise DataError(
            f"{container.path}: {name} is a link to {entry.linkname} and has no bytes of its own; "
            "pack the files again with tar --dereference --hard-dereference"
        )
    if not split or not entry.isreg() or entry.issparse():
        return False
    sample = samples.setdefault(split[1], _Sample())
    ending = split[2].lower()
    if ending in sample.files:
        sample.twice.append(ending)
    sample.files[ending] = Member(container, name, entry.offset_data, entry.size)
    return True


def _found(where: str, sample: _Sample, columns: Columns, want: Want, lines: bool) -> Found:
    holds = ", ".join(sample.files) or "no files"
    meant = IMAGES if columns.image is None else {columns.image}
    pictures = [ending for ending in sample.files if ending in meant]
    picture = sample.files[pictures[0]] if len(pictures) == 1 else None
    reason = f"no picture among {holds}" if not pictures else ""
    if len(pictures) > 1:
        reason = f"several pictures ({', '.join(pictures)}); name one ending with --image-column"
    if sample.twice:
        reason, picture = f"two files end in {sample.twice[0]}", None
    cells: tuple[Any, ...] = ()
    if want != "picture" and not reason:
        try:
            cells = _cells(sample, columns, want, lines)
        except KeyError as missing:
            reason = f"no {missing.args[0]} among {holds}"
        except (ValueError, RecursionError) as error:
            reason = f"its json cannot be read ({error})"
    return Found(where, picture, reason, cells)


def _cells(sample: _Sample, columns: Columns, want: Want, lines: bool) -> tuple[Any, ...]:
    if want == "label":
        return (_cell(sample, (columns.label,) if columns.label else LABELS, LABEL_COLUMNS, "label"),)
    if columns.text is not None:
        return tuple(_cell(sample, (name,), (), "caption", lines) for name in columns.text)
    return (_cell(sample, TEXTS, TEXT_COLUMNS, "caption", lines),)


def _cell(sample: _Sample, endings: tuple[str, ...], fields: tuple[str, ...], what: str, lines: bool = False) -> Any:
    """The content of the first file with one of the endings, or of the sample's json under that name."""
    for ending in endings:
        if ending in sample.files and ending != "json":
            text = sample.files[ending].read().decode("utf-8", "surrogateescape")
            return text.splitlines() if lines and what == "caption" else text.rstrip("\r\n")
    if "json" in sample.files:
        content = json.loads(sample.files["json"].read().decode("utf-8", "surrogateescape"))
        if not isinstance(content, dict):
            if "json" in endings:
                return content
        else:
            for name in (*endings, *fields):
                if name in content:
                    return content[name]
    raise KeyError(what if len(endings) > 1 else endings[0])
