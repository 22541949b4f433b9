"""The one training loop.

Batches are a function of the step, so a resumed run repeats nothing and skips nothing. Knows no
model, no data and no loss: they are arguments.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from internvl.errors import TrainingError
from internvl.training.log import Log
from internvl.training.objectives import Objective
from internvl.training.optim import make_optimizer, schedule
from internvl.training.recipe import Recipe
from internvl.training.state import load_state, save_state

Evaluate = Callable[[nn.Module], dict[str, float]]


def train(
    model: nn.Module,
    recipe: Recipe,
    objective: Objective,
    batches: Callable[[int], Any],
    out: Path,
    *,
    evaluate: Evaluate | None = None,
) -> int:
    """Trains `model` in place and returns the number of finished steps.

    `batches(step)` gives the batch of a step. `out` receives `state.safetensors` and `log.jsonl`; a run
    that finds a state there continues it. Ctrl-C saves and returns. Raises TrainingError when a loss
    is not finite; the last saved state is then untouched.
    """
    out.mkdir(parents=True, exist_ok=True)
    state, log = out / "state.safetensors", Log(out / "log.jsonl")
    torch.manual_seed(recipe.seed)
    optimizer = make_optimizer(model, recipe.params)
    done = load_state(state, model, optimizer) if state.exists() else 0
    model.train()
    tally = _Tally(log, recipe)
    try:
        while done < recipe.steps:
            lr = schedule(optimizer, done, recipe)
            batch = batches(done)
            with _interrupts_held():
                tally.add(_step(model, objective, batch, optimizer, recipe, done))
                done += 1
            tally.flush(done, lr)
            if evaluate is not None and (done % recipe.eval_every == 0 or done == recipe.steps):
                log.write(step=done, **evaluate(model))
                model.train()
            if done % recipe.save_every == 0:
                save_state(state, model, optimizer, done)
    except KeyboardInterrupt:
        log.write(step=done, event="interrupted")
    save_state(state, model, optimizer, done)
    return done


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits for the end of the block, so that no step is saved half done.

    Only the main thread receives it; elsewhere there is nothing to hold.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        raise KeyboardInterrupt


def _step(
    model: nn.Module,
    objective: Objective,
    batch: Any,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    step: int,
) -> Counter[str]:
    loss = objective(model, batch)
    value = float(loss.total.detach())
    if not math.isfinite(value):
        raise TrainingError(
            f"the loss of step {step + 1} is {value} over {loss.count} targets ({dict(loss.metrics)}): "
            "lower the learning rate, or look at the batch, which is a function of the step"
        )
    optimizer.zero_grad(set_to_none=True)
    (loss.total / max(1, loss.count)).backward()
    if recipe.clip_norm is not None:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(params, recipe.clip_norm)
    optimizer.step()
    return Counter({"total": value, "count": loss.count, **loss.metrics})


class _Tally:
    """Sums between two lines of the log."""

    def __init__(self, log: Log, recipe: Recipe) -> None:
        self.log, self.recipe = log, recipe
        self.sums: Counter[str] = Counter()
        self.since = time.perf_counter()

    def add(self, sums: Counter[str]) -> None:
        self.sums.update(sums)

    def flush(self, step: int, lr: float) -> None:
        if step % self.recipe.log_every and step != self.recipe.steps:
            return
        now, count = time.perf_counter(), max(1, self.sums["count"])
        metrics = {name: value for name, value in self.sums.items() if name not in ("total", "count")}
        self.log.write(
            step=step,
            loss=self.sums["total"] / count,
            lr=lr,
            seconds=now - self.since,
            targets=count,
            **metrics,
        )
        self.sums, self.since = Counter(), now
