"""What a run will need, before it runs: parameters, memory and time.

Works on a model built on any device, the meta device included, whose parameters the recipe's rules have
frozen. Memory of the allocator, of libraries and of data threads comes on top. Knows no data beyond sizes.
Shape letters: T tokens, D width.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from internvl.data.example import Size
from internvl.models.dual_encoder import DualEncoder
from internvl.models.layers import GatedMLP
from internvl.models.vlm import VLM
from internvl.training.precision import autocast
from internvl.training.recipe import Recipe
from internvl.training.work_units import Load
from internvl.training.workload import FLOAT, activation_bytes, step_flops, step_load

TOLD_IN_PARTS = ("vit", "llm", "qllama")
WIDTH = 100
"""Columns of the text."""
RATE_TOKENS, RATE_WIDTH = 512, 1024
"""Of the product whose speed stands for that of a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """One row of the table: numbers, not bytes, but for `bytes`. Weights kept in int8 count too."""

    name: str
    total: int
    trained: int
    dtypes: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Bytes are those of one process, `flops` those of a step on all of them.

    `is_limit`: no sizes of records were known, so each was taken for as long as the recipe allows. `seconds`
    of the whole run are None without a rate or a number of steps.
    """

    groups: tuple[Parameters, ...]
    load: Load
    is_limit: bool
    weights: int
    gradients: int
    optimizer: int
    averages: int
    activations: int
    flops: float
    steps: int | None
    seconds: float | None

    @property
    def memory(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.averages + self.activations


def estimate(
    model: VLM | DualEncoder,
    recipe: Recipe,
    sizes: Sequence[Size] | None = None,
    *,
    processes: int = 1,
    steps: int | None = None,
    rate: float | None = None,
) -> Estimate:
    """`sizes` are those of some records; `rate` the FLOP a second of one process (`measure_rate`)."""
    load = step_load(model, recipe, sizes)
    groups = parameter_groups(model)
    shards = processes if recipe.execution.parallel == "fsdp" else 1
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = sum(p.numel() * p.element_size() for p in trained) // shards
    micro = load.share(processes * recipe.execution.accumulate)
    flops = step_flops(model, recipe, load)
    steps = recipe.steps if steps is None else steps
    seconds = None if rate is None or steps is None else steps * flops / (rate * processes)
    return Estimate(
        groups=groups,
        load=load,
        is_limit=not sizes,
        weights=sum(group.bytes for group in groups) // shards,
        gradients=gradients,
        optimizer=2 * gradients,  # AdamW's two moments, in the dtype of the weights
        averages=0 if recipe.ema is None else FLOAT * sum(p.numel() for p in trained) // shards,
        activations=round(activation_bytes(model, recipe, micro)),
        flops=flops,
        steps=steps,
        seconds=seconds,
    )


def parameter_groups(model: nn.Module) -> tuple[Parameters, ...]:
    """Parameters and int8 weights by the parts of the model, in its order."""
    rows: dict[str, Parameters] = {}
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if buffer.dtype == torch.int8]
    for name, value in (*model.named_parameters(), *buffers):
        first, *rest = name.split(".")
        key = f"{first}.{rest[0]}" if first in TOLD_IN_PARTS else first
        old = rows.get(key, Parameters(name=key, total=0, trained=0, dtypes=(), bytes=0))
        count = value.numel()
        rows[key] = Parameters(
            name=key,
            total=old.total + count,
            trained=old.trained + count * value.requires_grad,
            dtypes=tuple(dict.fromkeys((*old.dtypes, str(value.dtype).removeprefix("torch.")))),
            bytes=old.bytes + count * value.element_size(),
        )
    return tuple(rows.values())


def describe(made: Estimate) -> str:
    """The estimate as text: a table of parameters, one of memory, and what a step and the run take."""
    parameters = Table("parameters", "total", "trained", "dtype", "size", box=None, header_style="")
    rows = [(g.name, g.total, g.trained, "+".join(g.dtypes), g.bytes) for g in made.groups]
    total = ("all", sum(row[1] for row in rows), sum(row[2] for row in rows), "", sum(row[4] for row in rows))
    for name, count, trained, dtypes, num_bytes in (*rows, total):
        parameters.add_row(name, f"{count:,}", f"{trained:,}", dtypes, _size(num_bytes))
    memory = Table("memory of a process", "", box=None, header_style="")
    for name in ("weights", "gradients", "optimizer", "averages", "activations", "memory"):
        memory.add_row("all" if name == "memory" else name, _size(getattr(made, name)))
    for table in (parameters, memory):
        for column in table.columns[1:]:
            column.justify = "right"
    screen = Console(file=io.StringIO(), width=WIDTH)
    with screen.capture() as captured:
        screen.print(parameters, "", memory, "", *_sentences(made), sep="\n", highlight=False, markup=False)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def _sentences(made: Estimate) -> list[str]:
    load = made.load
    step = f"a step: {load.tokens:,.0f} tokens, {load.trained:,.0f} trained, {load.tiles:,.0f} tiles"
    if made.is_limit:
        step += " (no record was read: each at the limit)"
    lines = [step, f"        {made.flops / 1e12:,.3f} TFLOP"]
    length = "unknown number of steps" if made.steps is None else f"{made.steps:,} steps"
    time_text = "" if made.seconds is None else f", about {duration(made.seconds)} of computing"
    return [*lines, f"the run: {length}{time_text}"]


def duration(seconds: float) -> str:
    """Seconds for people: 45 s, 12 min, 3.5 h, 2.1 days."""
    for unit, length, below in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < below * length:
            return f"{seconds / length:.0f} {unit}" if unit != "h" else f"{seconds / length:.1f} {unit}"
    return f"{seconds / 86_400:.1f} days"


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def measure_rate(
    recipe: Recipe, device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> float:
    """FLOP a second of this device over forward and backward pass of a gated MLP, in the recipe's dtypes.

    Takes about a second. A step also has small operations and waits for data: expect less of it.
    """
    mlp = GatedMLP(RATE_WIDTH, 4 * RATE_WIDTH).to(device, getattr(torch, recipe.model.dtype))
    x_TD = torch.randn(RATE_TOKENS, RATE_WIDTH, device=device, dtype=mlp.down.weight.dtype)
    x_TD.requires_grad_(True)
    flops = 6.0 * RATE_TOKENS * sum(p.numel() for p in mlp.parameters())
    best = math.inf
    for _ in range(3):
        start = clock()
        with autocast(recipe.execution.autocast, device):
            mlp(x_TD).sum().backward()
        float(x_TD.grad.sum() if x_TD.grad is not None else 0)  # waits for an accelerator
        best = min(best, clock() - start)
    return flops / best
