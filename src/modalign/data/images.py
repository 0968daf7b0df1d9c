"""From picture files to pixel batches, in the order asked for; what cannot be read comes back as data.

Pictures become RGB as in open_clip's own pipeline, `Image.open(path).convert("RGB")`, so that features are those
the model was evaluated with: transparency is dropped (not composited), 16-bit grey is clipped to 8 bits, the first
frame of an animation is taken, and EXIF orientation is ignored.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from modalign.data.bad_rows import BadRow, BadRows
from modalign.data.enlarging import as_tensor
from modalign.data.pictures import Member, Picture, size_of
from modalign.errors import DataError, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["BadRow", "BadRows", "ImageBatch", "decode", "image_batches"]


def decode(path: Picture) -> Image:
    """Reads a picture completely, as RGB.

    Args:
        path: a file, or a member of a container, in any format Pillow reads.

    Returns:
        An RGB picture that no longer needs the file.

    Raises:
        DataError: the file is missing, not a picture, truncated, or larger than Pillow's decompression-bomb limit.
    """
    try:
        return _read(path)
    except Exception as error:
        raise DataError(f"{path}: {_reason(path, error)}; replace the file or remove its row") from None


@dataclass(frozen=True)
class ImageBatch:
    """One batch of pixels.

    Attributes:
        index: b positions into the paths, in the order asked for, bad ones left out.
        pixels: b×3×H×W, preprocessed; 0×3×0×0 when the whole batch is bad.
        bad: the rows left out.
        other: b×3×H'×W', the same pictures as a second transform makes them, where there is one.
    """

    index: Tensor
    pixels: Tensor
    bad: tuple[BadRow, ...] = ()
    other: Tensor | None = None


def image_batches(
    paths: Sequence[Picture],
    wheres: Sequence[str],
    preprocess: Callable[[Any], Tensor],
    batches: Iterable[Tensor],
    *,
    other: Callable[[Any], Tensor] | None = None,
    workers: int = 0,
) -> Iterator[ImageBatch]:
    """Decodes and preprocesses batches of pictures; order and bytes do not depend on the number of workers.

    A picture that cannot be read or preprocessed is left out of its batch and reported in `ImageBatch.bad`.
    PyTorch's global random state is neither read nor changed.

    Args:
        paths: N pictures; members of containers are read in each process through handles of its own.
        wheres: N texts that say where each row was read from, for messages.
        preprocess: RGB picture → 3×H×W, one size for all; picklable when there are workers.
        batches: positions into `paths`, b integers a batch; consumed lazily, a few batches ahead of what is yielded.
        other: a second transform of the same pictures, decoded once for both; as `preprocess`.
        workers: how many processes decode; 0 decodes in this one.

    Yields:
        One `ImageBatch` for each element of `batches`.

    Raises:
        DataError: a worker process died.
    """
    loader: DataLoader[ImageBatch] = DataLoader(
        _Batches(paths, wheres, preprocess, other),
        # With batch_size=None each "sample" the sampler draws is one whole batch of positions.
        batch_size=None,
        sampler=map(torch.Tensor.tolist, batches),
        collate_fn=_as_is,
        num_workers=workers,
        worker_init_fn=_ignore_interrupt if workers else None,
        # Without a generator of its own a DataLoader advances the global random state at every pass.
        generator=torch.Generator().manual_seed(0),
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = first_line(error)
        raise DataError(f"a process that decodes images died: {reason}; use fewer workers, or 0") from error


class _Batches(Dataset[ImageBatch]):
    """Maps a list of positions to its `ImageBatch`."""

    def __init__(
        self,
        paths: Sequence[Picture],
        wheres: Sequence[str],
        preprocess: Callable[[Any], Tensor],
        other: Callable[[Any], Tensor] | None,
    ) -> None:
        self.paths, self.wheres, self.preprocess, self.other = paths, wheres, preprocess, other

    def __getitem__(self, positions: list[int]) -> ImageBatch:
        kept: list[int] = []
        pixels: list[tuple[Tensor, ...]] = []
        bad: list[BadRow] = []
        for position in positions:
            path = self.paths[position]
            try:
                picture = _read(path)
            except Exception as error:
                bad.append(BadRow(self.wheres[position], path, _reason(path, error)))
                continue
            try:
                pixels.append(tuple(_seen(path, picture, by) for by in (self.preprocess, self.other) if by is not None))
                kept.append(position)
            except Exception as error:
                bad.append(BadRow(self.wheres[position], path, f"cannot be preprocessed ({first_line(error)})"))
        views = [torch.stack(view) for view in zip(*pixels, strict=True)] or 2 * [torch.empty(0, 3, 0, 0)]
        other = views[1] if self.other is not None else None
        return ImageBatch(torch.tensor(kept, dtype=torch.long), views[0], tuple(bad), other)


def _read(path: Picture) -> Image:
    from PIL import Image

    with Image.open(path.open() if isinstance(path, Member) else path) as image:
        image.load()
        # Pillow warns about this combination, once per process, and drops the transparency itself.
        if isinstance(image.info.get("transparency"), bytes):
            del image.info["transparency"]
        return image.convert("RGB")


def _seen(path: Picture, picture: Image, preprocess: Callable[[Any], Tensor]) -> Tensor:
    return as_tensor(picture, preprocess) if isinstance(path, Member) and path.resized else preprocess(picture)


def _reason(path: Picture, error: Exception) -> str:
    """A few words on why a picture cannot be read; Pillow and its decoders raise nearly every kind of exception."""
    from PIL import Image, UnidentifiedImageError

    match error:
        case FileNotFoundError():
            return "no such file"
        case IsADirectoryError():
            return "a folder, not a picture"
        case PermissionError():
            return "no permission to read it"
        case Image.DecompressionBombError():
            return f"too many pixels ({str(error).split(',')[0]}; Pillow takes it for a decompression bomb)"
        case UnidentifiedImageError():
            return "empty file" if size_of(path) == 0 else "not a picture Pillow can read"
    text = first_line(error)
    return f"truncated ({text})" if "truncated" in text else f"cannot be read ({text})"


def _as_is(batch: Any) -> Any:
    return batch


def _ignore_interrupt(_: int) -> None:
    # Ctrl-C reaches the whole process group: the parent stops its workers, which would only print tracebacks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
