"""Taking the files a model was loaded from out of reach for as long as an export is verified."""

from __future__ import annotations

import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modalign.models.tower_file import split_tower

SUFFIX = ".modalign-away"


def source_paths(spec: str, config: dict[str, Any] | None = None) -> list[Path]:
    """The files and folders on this disk that a spec, and a model configuration, name.

    Args:
        spec: a model spec; of a run folder it is the model in it.
        config: open_clip's `model_cfg`, whose text tower may lie in a folder of its own.
    """
    base, tower = split_tower(spec)
    kind, _, rest = base.partition(":")
    if kind == "open_clip":
        local = rest.removeprefix("local-dir:")
        named = [local if local != rest else "" if rest.startswith("hf-hub:") else rest.partition("@")[2]]
    else:
        named = [rest if kind == "hf" else "" if kind == "demo" else base]
    named += [str(tower)] if tower is not None else []
    text = (config or {}).get("text_cfg", {})
    named += [name for key in ("hf_model_name", "hf_tokenizer_name") if (name := text.get(key)) and name != "."]
    found: set[Path] = set()
    for name in filter(None, named):
        path = Path(name).expanduser().absolute()
        for place in (path / "model", path):
            if place == path or (place / "modalign.json").is_file() or _hidden(place).exists():
                break
        if place.exists() or _hidden(place).exists():
            found.add(place)
    return sorted(path for path in found if not any(other in path.parents for other in found))


@contextmanager
def moved_away(paths: Sequence[Path]) -> Iterator[dict[Path, str]]:
    """Renames each path within its own folder for the length of the block, and back whatever ends the block.

    Left in place, with the reason as value, is what cannot be renamed and what the running Python needs: a package's
    folder, a folder that holds the environment. SIGTERM too puts everything back; after a power cut `restore` does.

    Yields:
        Path → "moved away" or why not.
    """
    told: dict[Path, str] = {}
    moved: list[Path] = []
    with _terminating():
        try:
            for path in paths:
                if _needed_by_python(path):
                    told[path] = "left in place: this Python runs from it"
                    continue
                try:
                    moved.append(path)
                    path.rename(_hidden(path))
                    told[path] = "moved away"
                except OSError as error:
                    moved.remove(path)
                    told[path] = f"left in place: {error.strerror}"
            yield told
        finally:
            for path in reversed(moved):
                if _hidden(path).exists() and not path.exists():
                    _hidden(path).rename(path)


def restore(paths: Sequence[Path]) -> None:
    """Puts back what a verification that was killed left renamed."""
    for path in paths:
        if _hidden(path).exists() and not path.exists():
            _hidden(path).rename(path)


def _hidden(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


def _needed_by_python(path: Path) -> bool:
    path = path.resolve()
    needed = [sys.prefix, sys.base_prefix, sys.executable, tempfile.gettempdir(), __file__, *filter(None, sys.path)]
    inside = any(path.is_relative_to(Path(prefix).resolve()) for prefix in (sys.prefix, sys.base_prefix))
    return inside or any(Path(place).resolve().is_relative_to(path) for place in needed)


@contextmanager
def _terminating() -> Iterator[None]:
    """Turns SIGTERM and SIGHUP into an exception where nothing else does, so that `finally` runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    deadly = [name for name in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(name) is signal.SIG_DFL]
    kept = {name: signal.signal(name, leave) for name in deadly}
    try:
        yield
    finally:
        for name, handler in kept.items():
            signal.signal(name, handler)
