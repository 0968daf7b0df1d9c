"""The same pictures as other people keep them: in tar shards, in a folder of `datasets`."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_tar(path: Path, files: Mapping[str, bytes] | Sequence[tuple[str, bytes]]) -> Path:
    """A tar of these files; a sequence may hold one name twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items() if isinstance(files, Mapping) else files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def write_shards(folder: Path, rows: Sequence[tuple[str, bytes, list[str]]], per_shard: int) -> str:
    """WebDataset shards of (file name, content, captions); returns their spec."""
    for number, start in enumerate(range(0, len(rows), per_shard)):
        files: dict[str, bytes] = {}
        for name, content, captions in rows[start : start + per_shard]:
            files[name] = content
            files[f"{name.partition('.')[0]}.json"] = json.dumps({"caption": captions}).encode()
        write_tar(folder / f"{number:03d}.tar", files)
    last = (len(rows) - 1) // per_shard
    return f"{folder}/{{000..{last:03d}}}.tar"


def dataset(rows: Sequence[tuple[str, bytes, list[str]]]) -> Any:
    """A `datasets.Dataset` with an Image and a list of captions in each row."""
    import datasets

    features = datasets.Features(
        {
            "image": datasets.Image(),
            "caption": datasets.List(datasets.Value("string")),
            "id": datasets.Value("int64"),
        }
    )
    columns = {
        "image": [{"bytes": content, "path": name} for name, content, _ in rows],
        "caption": [captions for *_, captions in rows],
        "id": list(range(len(rows))),
    }
    return datasets.Dataset.from_dict(columns, features=features)
