"""Run under torchrun by test_processes.py: trains the toy model and leaves its losses and weights."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from modalign import methods
from modalign import recipe as recipes
from modalign.console import Reporter
from modalign.training import distributed, inputs, scope
from modalign.training.loop import Loop
from tests.training.toy import ToyEncoder, toy_pairs


def main(out: Path, pictures: Path, *overrides: str) -> None:
    settings = recipes.load(None, ("data.batch_size=7", "epochs=3", "optimizer.lr=0.01", *overrides))
    processes = distributed.start(torch.device("cpu"))
    pairs = toy_pairs(pictures, n=26) if processes.is_main else None
    processes.barrier()
    pairs = pairs or toy_pairs(pictures / f"rank{processes.rank}", n=26)  # the same pictures under other names
    model, method = ToyEncoder(dtype=torch.float64), methods.from_config(settings.method)
    chosen = scope.choose(model, method, settings)
    data = inputs.prepare(model, pairs, settings, chosen.plan, out / "cache", processes, Reporter(silent=True))
    held = None
    if settings.data.validation > 0:
        held_plan = inputs.Plan(chosen.plan.trunk, chosen.plan.features | set(chosen.live))
        rows = pairs.take(torch.arange(9))
        held = inputs.prepare(model, rows, settings, held_plan, out / "cache", processes, Reporter(silent=True))
    if method.needs_fit:
        method.fit({f"frozen_{tower}": rows for tower, rows in data.features.items()})
    loop = Loop(model, method, settings, chosen, data, held, out, processes, Reporter(silent=True))
    loop.restore()
    loop.run()
    state = {name: p.detach().contiguous() for name, p in model.module.named_parameters()}
    save_file(state, out / f"weights-{processes.rank}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
