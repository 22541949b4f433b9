"""The one training loop: steps, their exact normalisation, and when to log, measure, save and stop.

Knows no model, no data format and no loss: they come with the `Job`. A step depends on the recipe, the step's
number and the data position alone, so a resumed run repeats nothing and skips nothing.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from internvl.errors import TrainingError
from internvl.training.ema import EMA
from internvl.training.evaluate import Best
from internvl.training.log import Log
from internvl.training.loss import Loss, Objective
from internvl.training.optim import lr_scale, set_rates
from internvl.training.precision import autocast
from internvl.training.progress import Progress
from internvl.training.recipe import Recipe
from internvl.training.saves import Saves
from internvl.training.signals import StopRequest
from internvl.training.world import World, check_averaged

KEYS_SHOWN = 8


class StepBatch(Protocol):
    """A micro-batch: it moves to a device and knows the keys of its records."""

    @property
    def keys(self) -> Sequence[str]: ...

    def to(self, device: torch.device) -> Any: ...


class StepBatches(Protocol):
    """The micro-batches of a step, which may be made one at a time."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[StepBatch]: ...


class StepData(Protocol):
    """This process's share of a step; `position` is where the next step begins. When the batches are made,
    `wait` is how many seconds were waited for them, and tokens and tiles are counted."""

    @property
    def batches(self) -> StepBatches: ...
    @property
    def position(self) -> int: ...
    @property
    def wait(self) -> float: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_tiles(self) -> int: ...


class Objected(nn.Module):
    """Model and objective as one module, so that DDP and FSDP see every parameter used in one forward
    pass."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Any) -> Loss:
        return self.objective(self.model, batch)


@dataclass(slots=True, kw_only=True)
class Job:
    """A run in progress. `module` is `Objected(model, objective)`, distributed where there are several
    processes.

    `take` gives the data of the next step, `facts` what else must be saved to continue, `evaluate` what is
    measured on held-out data (by name, averaged over processes). Of a run that goes on, `done` steps are
    finished, `skipped` of them without effect, and the last measurement came after step `measured`.
    """

    recipe: Recipe
    steps: int
    model: nn.Module
    module: nn.Module
    optimizer: torch.optim.Optimizer
    take: Callable[[], StepData]
    world: World
    saves: Saves
    log: Log
    progress: Progress
    best: Best
    facts: Callable[[], dict[str, Any]] = dict
    evaluate: Callable[[], dict[str, float]] | None = None
    ema: EMA | None = None
    done: int = 0
    position: int = 0
    skipped: int = 0
    measured: int = 0
    tally: _Tally = field(default_factory=lambda: _Tally())


def train(job: Job) -> str:
    """Runs the job to its end; returns why it ended: "finished", "interrupted" or "no better".

    SIGTERM and Ctrl-C end it after the current step, on all processes, with everything saved; a measurement
    that was due then is made when the run goes on. Raises TrainingError when a loss or gradient is not finite
    and the recipe does not skip it.
    """
    with StopRequest() as stop:
        job.model.train()
        while (reason := _after_step(job)) is None:
            _step(job)
            if job.world.any(stop.requested):
                reason = "interrupted"
                break
        _save(job)
        job.saves.wait()
    job.log.write(step=job.done, event=reason)
    return reason


def _after_step(job: Job) -> str | None:
    """Saves and measures where that is due; why the run ends here, if it does."""
    if _is_due(job, job.recipe.saving.every):
        _save(job)  # first: measuring may fail
    if job.evaluate is not None and job.measured < job.done and _is_due(job, job.recipe.evaluation.every):
        _evaluate(job, job.evaluate)
    if job.best.is_hopeless:
        return "no better"
    return "finished" if job.done >= job.steps else None


def _is_due(job: Job, every: int) -> bool:
    return job.done > 0 and (job.done % every == 0 or job.done == job.steps)


def _step(job: Job) -> None:
    """One optimiser step: gradients of sums over micro-batches and processes, divided by their common
    weight."""
    recipe, world = job.recipe, job.world
    torch.manual_seed(((recipe.seed * 1_000_003 + job.done) * 4099 + world.rank) % 2**63)
    data = job.take()
    rate = set_rates(job.optimizer, lr_scale(job.done, job.steps, recipe.schedule))
    job.optimizer.zero_grad(set_to_none=True)
    sums: Counter[str] = Counter()
    keys: list[str] = []
    batches = iter(data.batches)
    for left in reversed(range(len(data.batches))):
        batch = next(batches)
        with _synchronised(job.module, left == 0), autocast(recipe.execution.autocast, world.device):
            loss = job.module(batch.to(world.device))
            loss.total.backward()
        sums.update({"loss": float(loss.total.detach()), "weight": float(loss.weight), **loss.metrics})
        keys += batch.keys
        del batch  # else it stays in memory while the next one is made
    check_averaged(job.module, job.model)
    sums.update(tokens=data.num_tokens, tiles=data.num_tiles)
    sums = _over_processes(sums, world)
    norm = _normalise(job, sums["weight"])
    finite = math.isfinite(sums["loss"]) and math.isfinite(norm)
    if finite:
        job.optimizer.step()
        if job.ema is not None:
            job.ema.update()
    else:
        _refuse(job, keys, sums, norm)
    job.done, job.position = job.done + 1, data.position
    job.tally.add(sums if finite else Counter(), data.wait)
    if job.done % recipe.log_every == 0 or job.done == job.steps:
        row = job.tally.row(step=job.done, lr=rate, grad_norm=norm, position=job.position)
        job.log.write(**row)
        job.progress.update(job.done, row)


def _over_processes(sums: Counter[str], world: World) -> Counter[str]:
    names = sorted(sums)
    values = world.sum(torch.tensor([sums[name] for name in names], dtype=torch.float64))
    return Counter(dict(zip(names, values.tolist(), strict=True)))


def _normalise(job: Job, weight: float) -> float:
    """Divides the gradients by the weight of the whole step and clips them; returns their norm before
    clipping.

    Processes hold the mean over processes of their sums, hence the factor.
    """
    if weight <= 0:
        raise TrainingError(f"step {job.done + 1} has no target to learn from: look at its records")
    params = [p for group in job.optimizer.param_groups for p in group["params"] if p.grad is not None]
    gradients = [p.grad for p in params]
    torch._foreach_mul_(gradients, job.world.size / weight)
    limit = math.inf if job.recipe.clip_norm is None else job.recipe.clip_norm
    norm: Any = nn.utils.clip_grad_norm_(params, limit)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def _refuse(job: Job, keys: Sequence[str], sums: Counter[str], norm: float) -> None:
    """A step that is not finite changes no weight: it is skipped and recorded, or ends the run."""
    job.skipped += 1
    row = {"step": job.done + 1, "event": "not finite", "loss": sums["loss"], "grad_norm": norm, "keys": keys}
    job.log.write(**{name: str(value) if isinstance(value, float) else value for name, value in row.items()})
    execution = job.recipe.execution
    if execution.non_finite == "stop" or job.skipped > execution.non_finite_limit:
        shown = ", ".join(keys[:KEYS_SHOWN])
        job.saves.wait()  # else the checkpoint being written would stay half done
        latest = job.saves.latest()
        start = "the beginning, since nothing was saved yet" if latest is None else latest.name
        change = (
            "non_finite=skip" if execution.non_finite == "stop" else "non_finite_limit=N, a larger number,"
        )
        raise TrainingError(
            f"step {job.done + 1}: loss {sums['loss']}, gradient norm {norm}, {job.skipped} such steps. "
            f"Its records are in the log, first {shown}. Look at them; --resume --set execution.{change} "
            f"leaves such steps out and goes on from {start}; a lower learning rate needs a new run"
        )


@contextmanager
def _synchronised(module: nn.Module, is_last: bool) -> Iterator[None]:
    """Gradients travel between processes with the last micro-batch only."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(is_last)
    is_held = isinstance(module, DistributedDataParallel) and not is_last
    with module.no_sync() if is_held else nullcontext():  # type: ignore[operator]
        yield


def _evaluate(job: Job, measure: Callable[[], dict[str, float]]) -> None:
    """Measures, and keeps the best checkpoint."""
    job.model.eval()
    with job.ema.swapped() if job.ema is not None else nullcontext():
        row = measure()
    job.model.train()
    job.log.write(step=job.done, **row)
    is_best, job.measured = job.best.update(row, job.done), job.done
    if is_best or job.saves.latest_step == job.done:
        _save(job, again=True)  # one of this step does not know of the measurement
    if is_best:
        job.saves.keep_best(job.done)
    job.tally.restart()


def _save(job: Job, *, again: bool = False) -> None:
    """A checkpoint of this step, unless there is one."""
    if job.saves.latest_step == job.done and not again:
        return
    facts = {
        "step": job.done,
        "position": job.position,
        "skipped": job.skipped,
        "measured": job.measured,
        "best": job.best.state(),
        **job.facts(),
    }
    job.saves.save(job.done, job.model, job.optimizer, facts, ema=job.ema)


class _Tally:
    """Sums between two lines of the log."""

    def __init__(self) -> None:
        self.sums: Counter[str] = Counter()
        self.wait, self.since = 0.0, time.perf_counter()

    def add(self, sums: Counter[str], wait: float) -> None:
        self.sums.update(sums)
        self.wait += wait

    def restart(self) -> None:
        """The clock starts again: what came between was not training."""
        self.sums, self.wait, self.since = Counter(), 0.0, time.perf_counter()

    def row(self, **start: float) -> dict[str, float]:
        """Means by weight, rates by second, and the share of time spent waiting for data; starts again."""
        seconds = max(1e-9, time.perf_counter() - self.since)
        sums, weight = self.sums, self.sums["weight"] or math.nan
        loss, trained = sums.pop("loss", 0.0) / weight, sums.get("trained", weight)
        rates = {f"{name}_per_second": sums.pop(name, 0) / seconds for name in ("tokens", "tiles")}
        means = {name: value / trained for name, value in sums.items() if name not in ("weight", "trained")}
        row = {**start, "loss": loss, **means, **rates, "trained": trained, "seconds": seconds}
        row["data_wait"] = self.wait / seconds
        self.restart()
        return row
