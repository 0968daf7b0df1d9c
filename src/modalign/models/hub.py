"""Calls to libraries that may download: no remote code, no minute of retries offline, one line on failure."""

from __future__ import annotations

import logging
import re
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from modalign.errors import ModelError, first_line
from modalign.models.folder import read_json


@contextmanager
def asking_hub(what: str, instead: str) -> Iterator[None]:
    """Runs a library call that may download.

    Where the hub cannot be reached the call sees what is cached, at once. Code inside a repository is refused also
    where the library would ask on the terminal whether to run it.

    Args:
        what: what the call is after, for the message.
        instead: what to do when it cannot be had, for the message.

    Raises:
        ModelError: the call failed, for whatever reason the library gives.
    """
    import huggingface_hub.constants as hub
    from transformers import dynamic_module_utils as remote_code

    kept = hub.HF_HUB_OFFLINE, remote_code.TIME_OUT_REMOTE_CODE
    loggers = [logging.getLogger(name) for name in ("", "huggingface_hub.utils._http", "transformers")]
    levels = [logger.level for logger in loggers]
    handlers = list(logging.root.handlers)
    offline = hub.HF_HUB_OFFLINE or not _reachable(hub.ENDPOINT)
    try:
        hub.HF_HUB_OFFLINE, remote_code.TIME_OUT_REMOTE_CODE = offline, 0
        for logger in loggers:  # the libraries log what the one line below says
            logger.setLevel(logging.CRITICAL)
        yield
    except ModelError:
        raise
    except Exception as error:
        unreachable = offline and isinstance(error, OSError | RuntimeError)
        reason = f"it is not cached and {hub.ENDPOINT} cannot be reached" if unreachable else first_line(error)
        raise ModelError(f"cannot fetch {what}: {reason}; check the name and the network, or {instead}") from error
    finally:
        hub.HF_HUB_OFFLINE, remote_code.TIME_OUT_REMOTE_CODE = kept
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        logging.root.handlers[:] = handlers  # `logging.info` on a bare root installs one


def commit_of(path: str | Path) -> str | None:
    """The commit in a hub cache path (`…/snapshots/<commit>/<file>`), None for other files."""
    found = re.search(r"[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]", str(path))
    return found[1] if found else None


def refuse_code(folder: Path) -> None:
    """Refuses a folder whose configuration points at Python code of its own.

    Raises:
        ModelError: names the file.
    """
    for name in ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file() and "auto_map" in read_json(folder / name):
            raise ModelError(
                f"{folder / name} asks for code of its own (auto_map), which is never run: remove the key if a class "
                "of the library does, or use another model"
            )


def _reachable(endpoint: str) -> bool:
    if urllib.request.getproxies():  # a name that only the proxy resolves
        return True
    url = urlsplit(endpoint)
    try:
        socket.create_connection((url.hostname or "", url.port or 443), timeout=5).close()
    except OSError:
        return False
    return True
