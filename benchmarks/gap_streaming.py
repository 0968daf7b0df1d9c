"""How long the moment-based gap measures take on stored embeddings, streamed from disk.

    OMP_NUM_THREADS=1 python benchmarks/gap_streaming.py [--pairs 1000000] [--dim 512] [--write FILE.md]

On one thread CPU seconds are what the work costs whatever else the machine does; without the variable all cores serve.

Makes an image and a text file of float32 features (a block of 65,536 random pairs, repeated with a drift), maps them
into memory and streams growing parts of them through `modalign.gap.StreamingMoments`: time per modality (both are
streamed at once; half of the time is told), peak memory, and whether the time is linear in the
number of pairs. The first part is also measured directly, and the largest difference told.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from modalign import gap
from modalign.environment import versions

SHARES = (0.1, 0.3, 1.0)
CHECKED = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = write(Path(folder), arguments.pairs, arguments.dim)
        image, text = (np.load(file, mmap_mode="r") for file in files)
        lines = table(image, text)
    print("\n".join(lines))
    if arguments.write:
        threads = os.environ.get("OMP_NUM_THREADS")
        command = f"python benchmarks/gap_streaming.py --pairs {arguments.pairs} --dim {arguments.dim}"
        command = f"OMP_NUM_THREADS={threads} {command}" if threads else command
        head = ["# The gap of a million pairs, streamed", "", f"`{command} --write {arguments.write}`", ""]
        arguments.write.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")


def write(folder: Path, pairs: int, dim: int) -> list[Path]:
    rng = np.random.default_rng(0)
    concept = rng.normal(size=(min(pairs, 65_536), dim)).astype(np.float32) * np.linspace(0.2, 1.5, dim, dtype="f4")
    files = []
    for name, place in (("image", 0.05), ("text", -0.05)):
        noise = rng.normal(size=concept.shape).astype(np.float32)
        file = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype="f4", shape=(pairs, dim))
        for start in range(0, pairs, len(concept)):
            part = file[start : start + len(concept)]
            part[:] = concept[: len(part)] + (0.5 + start / pairs) * noise[: len(part)] + np.float32(place)
        file.flush()
        files.append(folder / f"{name}.npy")
    return files


def table(image: np.ndarray, text: np.ndarray) -> list[str]:
    rows = ["| pairs | wall seconds a modality | CPU seconds a modality | CPU µs a pair and modality |"]
    rows.append("|---|---|---|---|")
    for share in SHARES:
        count = int(share * len(image))
        began, spent = time.perf_counter(), time.process_time()
        report = gap.StreamingMoments().update(image[:count], text[:count]).report()
        seconds, cpu = time.perf_counter() - began, time.process_time() - spent
        rows.append(f"| {count:,} | {seconds / 2:.1f} | {cpu / 2:.1f} | {cpu / 2 / count * 1e6:.1f} |")
    few = min(CHECKED, len(image))
    streamed = gap.StreamingMoments().update(image[:few], text[:few]).report().measures
    direct = gap.measure(image[:few], text[:few], resamples=0).measures
    apart = max(abs(value - direct[name]) for name, value in streamed.items() if value == value)
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    told = ", ".join(f"{name} {version}" for name, version in versions().items() if name in ("torch", "python"))
    return [
        f"{len(image):,} pairs × {image.shape[1]}, float32 .npy files mapped into memory; {torch.get_num_threads()} "
        f"of {os.cpu_count()} cores used; load average meanwhile {load}; NumPy {np.__version__}, {told}.",
        "",
        *rows,
        "",
        f"All of {sum(value == value for value in report.measures.values())} moment-based measures come from the one "
        f"pass. On {few:,} pairs the largest difference from `gap.measure` is {apart:.1e}. Peak memory of the process, "
        f"pages of the mapped files included: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB.",
    ]


if __name__ == "__main__":
    main()
