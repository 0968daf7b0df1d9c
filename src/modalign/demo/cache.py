"""A folder that is built once and reused: complete or absent, whoever builds it at the same time."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from modalign.errors import OutputError


def cache_dir() -> Path:
    """`$MODALIGN_CACHE`, else `$XDG_CACHE_HOME/modalign`, else `~/.cache/modalign`."""
    if named := os.environ.get("MODALIGN_CACHE"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "modalign"


def build_once(folder: Path, build: Callable[[Path], None]) -> bool:
    """Builds `folder` unless it exists: into a temporary folder beside it, which is then renamed.

    Two processes that build at the same time both succeed; the first rename counts.

    Args:
        folder: the result; it is either complete or absent.
        build: fills the (existing, empty) folder it is given.

    Returns:
        Whether this call built it.

    Raises:
        OutputError: the cache cannot be written.
    """
    if folder.is_dir():
        return False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    except OSError as error:
        raise OutputError(f"{folder.parent}: cannot be written ({error.strerror}); set MODALIGN_CACHE") from error
    try:
        build(temporary)
        temporary.chmod(0o755)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            return False
        return True
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
