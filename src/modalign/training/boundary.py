"""The embedding boundary: towers on the left, pure maths on the right, and the gradient carried across once.

The algorithm, for a global batch of B pairs over W processes:

1. Every process embeds its own rows. When they fit in one chunk the graph is kept; otherwise they are embedded
   chunk by chunk without a graph.
2. The embeddings of all processes are gathered, detached. Each process computes the same global loss on the same
   B rows and takes its gradient with respect to the embeddings; only its own rows of that gradient are used.
3. The own rows' gradient is pushed through the towers: through the kept graph, or by embedding each chunk once
   more with a graph. Tower gradients are then *summed* over processes.

By the chain rule the result is the gradient of the loss of the whole batch, whatever the chunk size and the number
of processes: the loss couples all rows, but only through their embeddings (the idea of GradCache, arXiv 2101.06983).
Where a tower drops at random, each chunk draws its masks from its own stream, so that it meets the same ones twice.

A method on a curriculum has the gradients of its base and its aligning terms compared here, where both are at hand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor, nn

from modalign.embeddings import Embeddings
from modalign.errors import NonFiniteError
from modalign.methods.base import Method
from modalign.training.distributed import Processes
from modalign.training.precision import tf32

SideName = Literal["image", "text"]


@dataclass
class Side:
    """One tower in training, as the boundary sees it.

    Args:
        encode: own inputs (pixels, tokens or stored trunk outputs) → b×d raw features.
        parameters: the tower's trained parameters by name.
        inputs: the own rows of this step.
        masks: first global row of a chunk → the random stream of its dropout; None = the tower draws nothing.
    """

    encode: Callable[[Tensor], Tensor]
    parameters: Mapping[str, nn.Parameter]
    inputs: Tensor
    masks: Callable[[int], AbstractContextManager[object]] | None = None

    def embed(self, part: Tensor, row: int, *, graph: bool) -> Tensor:
        """One chunk's features, with or without their graph.

        Args:
            part: own inputs of the chunk.
            row: the chunk's first row in the global batch.
            graph: whether gradients will flow. With masks a graph is built either way: the kernels that run without
                one may draw other numbers.
        """
        with torch.set_grad_enabled(graph or self.masks is not None), self.masks(row) if self.masks else nullcontext():
            features = self.encode(part)
        return features if graph else features.detach()


@dataclass
class Outcome:
    """What one step gave.

    Attributes:
        terms: weighted terms by name.
        loss: their sum.
        norms: probe steps only: each term's gradient norm with respect to the embeddings.
        cosines: probe steps only: "a|b" → cosine between two terms' gradients.
        tower_seconds: spent embedding and back-propagating.
        loss_seconds: spent right of the boundary.
        embedded: image and text rows this process sent through a tower (re-embedding counted).
        curriculum: α and what decided it, for a method on a curriculum.
        conflicts: parameter name → (a·b, a·a, b·b) of the aligning gradient a and the rest b, where the curriculum
            wants them compared in the towers.
    """

    terms: dict[str, float]
    loss: float
    norms: dict[str, float] = field(default_factory=dict)
    cosines: dict[str, float] = field(default_factory=dict)
    tower_seconds: float = 0.0
    loss_seconds: float = 0.0
    embedded: dict[str, int] = field(default_factory=dict)
    curriculum: dict[str, float] = field(default_factory=dict)
    conflicts: dict[str, tuple[float, float, float]] = field(default_factory=dict)


def backward(
    sides: Mapping[SideName, Side],
    batch: Embeddings,
    own: slice,
    method: Method,
    progress: float,
    *,
    chunk: int | None = None,
    processes: Processes | None = None,
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
    probe: bool = False,
) -> Outcome:
    """Adds ∂loss/∂θ of one global batch to the `.grad` of every trained parameter.

    Args:
        sides: the towers in training with their own rows.
        batch: everything else of the global batch: frozen signals, ids, draws, and the features of a tower that
            does not train. The trained sides' fields are filled in here.
        own: which global rows this process holds.
        method: gives the terms.
        progress: (step counted from 1) / steps.
        chunk: rows embedded at once; None = all own rows.
        processes: this process's place; None = alone.
        precision: makes the autocast context of the towers.
        probe: also measure each term's gradient at the boundary and the cosines between them.

    Raises:
        NonFiniteError: a term or a gradient is NaN or infinite; names it.
    """
    processes = processes or Processes()
    clock = time.perf_counter()
    parts = {name: _split(side.inputs, chunk) for name, side in sides.items()}
    kept: dict[SideName, Tensor] = {}
    leaves: dict[SideName, Tensor] = {}
    embedded = dict.fromkeys(sides, 0)
    for name, side in sides.items():
        keep_graph = len(parts[name]) == 1
        with precision():
            chunks = [side.embed(part, row, graph=keep_graph) for row, part in _numbered(parts[name], own.start)]
        features = torch.cat(chunks)
        if keep_graph:
            kept[name] = features
        embedded[name] += len(features)
        leaves[name] = processes.gather(features).requires_grad_()
    towers = _now(leaves)

    filled, pace = _paced(_filled(batch, leaves), leaves, method, progress)
    gradients, outcome = _loss(filled, leaves, method, progress, probe, pace)
    loss_done = _now(leaves)

    def push(gradient: Mapping[SideName, Tensor], *, again: bool = False) -> None:
        """Carries a gradient at the embeddings through the towers, and sums it over processes."""
        for name, side in sides.items():
            if name in kept:
                kept[name].backward(gradient[name][own], retain_graph=again)
                continue
            for row, part in _numbered(parts[name], 0):
                with precision():
                    features = side.embed(part, own.start + row, graph=True)
                features.backward(gradient[name][own][row : row + len(part)])
            embedded[name] += len(side.inputs)
        for side in sides.values():
            processes.sum_gradients(side.parameters.values())

    if pace.apart is None:
        push(gradients)
    else:
        _push_apart(sides, gradients, pace.apart, push, outcome)
    outcome.tower_seconds = towers - clock + _now(leaves) - loss_done
    outcome.loss_seconds = loss_done - towers
    outcome.embedded = {str(name): count for name, count in embedded.items()}
    return outcome


@torch.no_grad()
def evaluate(batch: Embeddings, method: Method, progress: float) -> Outcome:
    """The terms of a complete batch without any gradient (validation), at the strength of the latest step."""
    if method.curriculum is not None:
        batch = replace(batch, strength=method.curriculum.strength)
    terms = _terms(batch, method, progress)
    values = {name: float(term) for name, term in terms.items()}
    return Outcome(values, sum(values.values()))


def _filled(batch: Embeddings, leaves: Mapping[SideName, Tensor]) -> Embeddings:
    return replace(batch, image=leaves.get("image", batch.image), text=leaves.get("text", batch.text))


def _split(inputs: Tensor, chunk: int | None) -> list[Tensor]:
    if chunk is None or len(inputs) <= chunk:
        return [inputs]
    return list(inputs.split(chunk))


def _numbered(parts: list[Tensor], first: int) -> Iterator[tuple[int, Tensor]]:
    """Each part with the number of its first row."""
    for part in parts:
        yield first, part
        first += len(part)


def _terms(batch: Embeddings, method: Method, progress: float) -> dict[str, Tensor]:
    some = batch.image if batch.image is not None else batch.text
    assert some is not None
    with torch.autocast(some.device.type, enabled=False), tf32(False):
        return method.terms(batch, progress)


@dataclass
class _Pace:
    """What a curriculum says of one step.

    Attributes:
        told: α and what decided it.
        extra: what is added to the summed gradient at the embeddings, one tensor a leaf.
        apart: α times the aligning gradient, one tensor a leaf, when it is to be compared in the towers.
    """

    told: dict[str, float] = field(default_factory=dict)
    extra: list[Tensor] | None = None
    apart: dict[SideName, Tensor] | None = None


def _paced(
    batch: Embeddings, leaves: Mapping[SideName, Tensor], method: Method, progress: float
) -> tuple[Embeddings, _Pace]:
    """Moves the method's curriculum on by one step; the batch comes back with its strength."""
    curriculum = method.curriculum
    if curriculum is None:
        return batch, _Pace()
    found = None
    if curriculum.due:
        planned = replace(batch, strength=curriculum.planned(progress))
        found = _both_gradients(planned, list(leaves.values()), method, progress)
    if found is not None:
        curriculum.observe(*(torch.cat([g.flatten() for g in gradients]) for gradients in found))
    pace = _Pace(curriculum.advance(progress))
    alpha = pace.told["alpha"]
    if found is not None and alpha > 0:
        aligning, base = found
        if curriculum.on_conflict == "project":
            against = sum(float((a * b).sum()) for a, b in zip(aligning, base, strict=True))
            size = sum(float(b.square().sum()) for b in base)
            if against < 0 and size > 0:
                pace.extra = [-alpha * against / size * b for b in base]
        elif curriculum.on_conflict == "learning_rate":
            pace.apart = {name: alpha * gradient for name, gradient in zip(leaves, aligning, strict=True)}
    return replace(batch, strength=alpha), pace


def _both_gradients(
    batch: Embeddings, leaves: list[Tensor], method: Method, progress: float
) -> tuple[list[Tensor], list[Tensor]] | None:
    """The gradients of the aligning and the base loss at the embeddings; None where there is not one of each."""
    some = leaves[0]
    with torch.enable_grad(), torch.autocast(some.device.type, enabled=False), tf32(False):
        base, aligning = method.parts(batch, progress)
        if base is None or aligning is None:
            return None
        found = []
        for loss in (aligning, base):
            gradients = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
            found.append([torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)])
    return found[0], found[1]


def _push_apart(
    sides: Mapping[SideName, Side],
    gradients: Mapping[SideName, Tensor],
    aligning: Mapping[SideName, Tensor],
    push: Callable[..., None],
    outcome: Outcome,
) -> None:
    """Pushes the aligning gradient and the rest through the towers one after the other, and compares what arrives."""
    trained = {name: p for side in sides.values() for name, p in side.parameters.items()}
    before = {name: p.grad for name, p in trained.items()}
    arrived: list[dict[str, Tensor | None]] = []
    rest = {name: gradient - aligning[name] for name, gradient in gradients.items()}
    for number, gradient in enumerate((aligning, rest)):
        for parameter in trained.values():
            parameter.grad = None
        push(gradient, again=number == 0)
        arrived.append({name: p.grad for name, p in trained.items()})
    for name, parameter in trained.items():
        parts = [g for g in (before[name], arrived[0][name], arrived[1][name]) if g is not None]
        parameter.grad = torch.stack(parts).sum(0) if parts else None
        a, b = arrived[0][name], arrived[1][name]
        if a is not None and b is not None:
            outcome.conflicts[name] = (float((a * b).sum()), float(a.square().sum()), float(b.square().sum()))


def _loss(
    batch: Embeddings,
    leaves: Mapping[SideName, Tensor],
    method: Method,
    progress: float,
    probe: bool,
    pace: _Pace,
) -> tuple[dict[SideName, Tensor], Outcome]:
    """The global loss and its gradient with respect to the embeddings and the method's own parameters."""
    with torch.enable_grad():
        terms = _terms(batch, method, progress)
    values = {name: float(term.detach()) for name, term in terms.items()}
    for name, value in values.items():
        if not _finite(value):
            raise NonFiniteError(f"the loss term {name!r} is {value}")
    module = method.module()
    own_parameters = [p for p in module.parameters() if p.requires_grad] if module is not None else []
    wanted = [*leaves.values(), *own_parameters]
    outcome = Outcome(values, sum(values.values()), curriculum=pace.told)
    if not terms or not any(term.requires_grad for term in terms.values()):
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}, outcome
    if probe:
        _probe(terms, list(leaves.values()), outcome)
    total = torch.stack(list(terms.values())).sum()
    with tf32(False):
        found = torch.autograd.grad(total, wanted, allow_unused=True, retain_graph=True)
    gradients = [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True)]
    if pace.extra is not None:
        gradients[: len(leaves)] = [g + extra for g, extra in zip(gradients, pace.extra, strict=False)]
    if not all(bool(torch.isfinite(g).all()) for g in gradients):
        for name, term in terms.items():
            parts = torch.autograd.grad(term, wanted, allow_unused=True, retain_graph=True)
            if not all(g is None or bool(torch.isfinite(g).all()) for g in parts):
                raise NonFiniteError(f"the gradient of the loss term {name!r} is not finite")
        raise NonFiniteError("the gradient of the summed loss is not finite")
    for parameter, gradient in zip(own_parameters, gradients[len(leaves) :], strict=True):
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    return dict(zip(leaves, gradients, strict=False)), outcome


def _probe(terms: Mapping[str, Tensor], leaves: list[Tensor], outcome: Outcome) -> None:
    flat: dict[str, Tensor] = {}
    for name, term in terms.items():
        if not term.requires_grad:
            continue
        parts = torch.autograd.grad(term, leaves, allow_unused=True, retain_graph=True)
        flat[name] = torch.cat(
            [(torch.zeros_like(x) if g is None else g).flatten() for x, g in zip(leaves, parts, strict=True)]
        )
    outcome.norms = {name: float(g.norm()) for name, g in flat.items()}
    for (a, first), (b, second) in combinations(flat.items(), 2):
        scale = float(first.norm() * second.norm())
        outcome.cosines[f"{a}|{b}"] = float(first @ second) / scale if scale > 0 else 0.0


def _now(leaves: Mapping[SideName, Tensor]) -> float:
    """The clock, once what was asked of a GPU is done."""
    for leaf in leaves.values():
        if leaf.is_cuda:
            torch.cuda.synchronize(leaf.device)
    return time.perf_counter()


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
