"""CPU seconds of the linear probe's choice among penalties, against scikit-learn in a loop over them.

    OMP_NUM_THREADS=1 python benchmarks/linear_probe.py [--examples 4000] [--dim 512] [--classes 50] [--write FILE.md]

Made features stand in for stored ones: unit vectors around class centres, with a falling spectrum and a common offset,
as CLIP's are; half is learned from, half judged. Both sides choose among the same penalties on the same validation
rows and are then fitted to all training rows. scikit-learn runs twice: with its default tolerance, and with the
largest tolerance (by hundreds) at which its weights are as near to the minimum as ours.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modalign.environment import versions
from modalign.evaluation.linear_probe import PENALTIES, ROUGHLY, VALIDATION, fit_probe
from modalign.evaluation.splits import stratified_split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=4000, help="training rows")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--device", default="cpu", help="of our side")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    x, y = features(arguments.examples, arguments.dim, arguments.classes)
    lines = table(x, y, arguments.classes, arguments.device)
    print("\n".join(lines))
    if arguments.write:
        threads = os.environ.get("OMP_NUM_THREADS")
        command = " ".join(
            [f"OMP_NUM_THREADS={threads}"] * bool(threads)
            + ["python benchmarks/linear_probe.py"]
            + [f"--{key} {getattr(arguments, key)}" for key in ("examples", "dim", "classes", "device")]
        )
        head = ["# The linear probe against scikit-learn", "", f"`{command} --write {arguments.write}`", ""]
        arguments.write.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")


def features(examples: int, dim: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    labels = np.arange(2 * examples) % classes
    spectrum = np.linspace(1.5, 0.1, dim)
    rows = 0.16 * rng.normal(size=(classes, dim))[labels] * spectrum + rng.normal(size=(len(labels), dim)) * spectrum
    rows += 2 * rng.normal(size=dim)
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32)), torch.tensor(labels)


def table(x: torch.Tensor, y: torch.Tensor, classes: int, device: str) -> list[str]:
    half = len(x) // 2
    validation = stratified_split(y[:half], VALIDATION)
    began = time.process_time()
    probe = fit_probe(x[:half].to(device), y[:half], classes, validation=validation)
    accuracy = probe.outcomes(x[half:].to(device), y[half:])["acc1"].mean()
    ours = time.process_time() - began
    rows = [
        "| | CPU seconds | λ chosen | test accuracy % | test accuracy % of the other at this λ |",
        "|---|---|---|---|---|",
    ]
    peers = [loop(x[:half], y[:half], validation, x[half:], y[half:], tolerance) for tolerance in (1e-4, None)]
    at_ours = fitted(x[:half], y[:half], probe.notes["penalty"], 1e-8).score(x[half:].numpy(), y[half:].numpy())
    told = f"| modalign, all {len(PENALTIES)} penalties at once | {ours:.1f} | {probe.notes['penalty']:.3g} "
    rows.append(told + f"| {100 * accuracy:.2f} | {100 * at_ours:.2f} |")
    for name, (seconds, chosen, score) in zip(("its default tolerance, 1e-4", "as near as ours"), peers, strict=True):
        again = fit_probe(x[:half], y[:half], classes, penalties=[chosen])
        other = again.outcomes(x[half:], y[half:])["acc1"].mean()
        rows.append(f"| scikit-learn, {name} | {seconds:.1f} | {chosen:.3g} | {100 * score:.2f} | {100 * other:.2f} |")
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    told = ", ".join(f"{name} {version}" for name, version in versions().items() if name in ("torch", "python"))
    return [
        f"{half:,} training rows × {x.shape[1]}, {classes} classes, λ = 1e-6 … 1e6; ours on {device}; "
        f"{torch.get_num_threads()} of {os.cpu_count()} cores used; load average {load}; {told}. "
        f"Not converged in ours: {', '.join(probe.notes['not_converged']) or 'none'}.",
        "",
        *rows,
    ]


def loop(
    x: torch.Tensor,
    y: torch.Tensor,
    held: torch.Tensor,
    test: torch.Tensor,
    truth: torch.Tensor,
    tolerance: float | None,
) -> tuple[float, float, float]:
    """Seconds, the penalty chosen and the accuracy of scikit-learn; without a tolerance, the one each penalty needs."""
    from sklearn.metrics import log_loss

    spent, best = 0.0, (-1.0, 0.0, 0.0)
    for penalty in sorted(PENALTIES, reverse=True):
        for attempt in [tolerance] if tolerance else [1e-4, 1e-6, 1e-8]:
            began = time.process_time()
            model = fitted(x[~held], y[~held], penalty, attempt)
            score = float(model.score(x[held].numpy(), y[held].numpy()))
            loss = log_loss(y[held].numpy(), model.predict_proba(x[held].numpy()))
            took = time.process_time() - began
            if tolerance or near(model, x[~held], y[~held], penalty):
                break
        spent += took
        best = max(best, (score, -loss, penalty))
    began = time.process_time()
    last = fitted(x, y, best[2], tolerance or 1e-6)
    score = float(last.score(test.numpy(), truth.numpy()))
    return spent + time.process_time() - began, best[2], score


def fitted(x: torch.Tensor, y: torch.Tensor, penalty: float, tolerance: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LogisticRegression(C=1 / penalty, max_iter=1000, tol=tolerance).fit(x.numpy(), y.numpy())


def near(model: Any, x: torch.Tensor, y: torch.Tensor, penalty: float) -> bool:
    """Whether the gradient is as small beside λ·‖W‖ as ours has to be."""
    weights = torch.tensor(model.coef_, dtype=torch.float64)
    bias = torch.tensor(model.intercept_, dtype=torch.float64)
    error = torch.softmax(x.double() @ weights.T + bias, 1) - torch.nn.functional.one_hot(y, len(bias))
    return bool((error.T @ x.double() + penalty * weights).norm() <= ROUGHLY * penalty * weights.norm())


if __name__ == "__main__":
    main()
