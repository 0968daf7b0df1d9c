"""From a model to a folder another library loads: convert, write, verify, and only then give it its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from modalign.errors import ExportError, OutputError
from modalign.models import DualEncoder, load
from modalign.models.folder import versions, whole_folder


def export(model: DualEncoder | str | Path, path: str | Path, format: str, *, llava: str | Path | None = None) -> Path:
    """Exports a model and verifies it in a fresh process before the folder gets its name.

    Writes the target library's files in float32, a README.md with the code that loads them, and export.json with
    what was compared; prints the comparison.

    Args:
        model: a model, a run folder or any model spec.
        path: the folder to write; new or empty.
        format: "open_clip", "transformers", or "llava": a LLaVA with this model's image tower.
        llava: the folder of the LLaVA whose tower is replaced, for that format alone.

    Returns:
        The folder.

    Raises:
        OutputError: the folder is not empty, or cannot be written.
        ExportError: the target cannot express the model (the message names the layer), or what was written does not
            load back the same; nothing is kept then.
        ModelError: there is no such model.
    """
    from modalign.exporting.away import restore, source_paths
    from modalign.exporting.card import card
    from modalign.exporting.probes import probe_captions, probe_pictures
    from modalign.exporting.verify import verify

    path = Path(path).expanduser().absolute()
    if (llava is not None) != (format == "llava"):
        raise ExportError("format llava and the LLaVA's folder (--llava DIR) go together: name both, or neither")
    if llava is not None:
        from modalign.exporting.llava import export_llava

        return export_llava(model, path, llava)
    if format not in TARGETS:
        raise ExportError(f"there is no format {format!r}: use {', '.join(TARGETS)} or llava")
    if path.is_dir() and any(path.iterdir()):
        raise OutputError(f"{path} is not empty: choose a new folder, or empty it")
    if not isinstance(model, DualEncoder):
        restore(source_paths(str(model)))
        model = load(model)
    if model.family == "wrapped":
        raise ExportError(
            f"{model.spec} is code of your own, which no library's layout holds: save it with model.save(folder) and "
            "load it with modalign.wrap(…).load_weights(folder)"
        )
    source = model.frozen_copy().to("cpu", torch.float32)
    target = TARGETS[format](source)
    sources = source_paths(model.spec, getattr(model, "config", None) if model.family == "open_clip" else None)
    with whole_folder(path) as draft:
        target.write(draft)
        (draft / "README.md").write_text(card(target), encoding="utf-8")
        run = Path(model.spec).expanduser()
        found = verify(source, draft, sources, probe_pictures(run), probe_captions(run))
        (draft / "README.md").write_text(card(target, found), encoding="utf-8")
        record = {
            "format": format,
            "spec": model.spec,
            "revision": model.revision,
            "fingerprint": target.fingerprint,
            "versions": versions(),
        }
        content = json.dumps(record | found.to_dict(), indent=2, ensure_ascii=False)
        (draft / "export.json").write_text(content + "\n", encoding="utf-8")
    print(found.to_table())
    return path


def _to_open_clip(model: DualEncoder) -> DualEncoder:
    from modalign.exporting import open_clip, siglip
    from modalign.models.hugging_face import HuggingFaceClip
    from modalign.models.siglip import HuggingFaceSiglip

    if isinstance(model, HuggingFaceSiglip):
        return siglip.to_open_clip(model)
    return open_clip.to_open_clip(model) if isinstance(model, HuggingFaceClip) else model


def _to_transformers(model: DualEncoder) -> DualEncoder:
    from modalign.exporting import hugging_face, siglip
    from modalign.models.open_clip import OpenClip

    if not isinstance(model, OpenClip):
        return model
    return hugging_face.to_transformers(model) if model.logit_bias is None else siglip.to_transformers(model)


TARGETS: dict[str, Callable[[DualEncoder], DualEncoder]] = {
    "open_clip": _to_open_clip,
    "transformers": _to_transformers,
}
