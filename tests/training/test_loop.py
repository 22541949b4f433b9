"""The loop on a line fitted to points: what a step is worth, and when it measures, saves, stops and ends."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from weakref import finalize

import pytest
import torch
from torch import Tensor, nn

from internvl.errors import TrainingError
from internvl.training.ema import EMA
from internvl.training.evaluate import Best
from internvl.training.log import Log
from internvl.training.loop import Job, Objected, train
from internvl.training.loss import Loss, Objective
from internvl.training.optim import lr_scale
from internvl.training.progress import Progress
from internvl.training.recipe import AdamW, Evaluation, Execution, Recipe, Saving, Schedule
from internvl.training.saves import Saves
from internvl.training.world import World

RATE = 0.1
RECIPE = Recipe(
    name="line",
    params=((".*", AdamW(lr=RATE)),),
    steps=6,
    clip_norm=None,
    log_every=1,
    schedule=Schedule(kind="constant"),
    saving=Saving(every=2, keep=9),
)
EVALUATED = replace(RECIPE, evaluation=Evaluation(every=2))


@dataclass(frozen=True)
class Points:
    """A micro-batch; points count by `weight_N`."""

    x_N3: Tensor
    y_N: Tensor
    weight_N: Tensor
    keys: tuple[str, ...]

    def to(self, device: torch.device) -> Points:
        return self


@dataclass(frozen=True)
class Taken:
    batches: tuple[Points, ...]
    position: int
    wait: float = 0.0
    num_tokens: int = 60
    num_tiles: int = 3


def points(step: int, parts: Sequence[int] = (6,)) -> tuple[Points, ...]:
    """The six points of a step (from 0) as micro-batches of so many."""
    source = torch.Generator().manual_seed(step)
    x_N3, y_N = torch.randn(6, 3, generator=source), torch.randn(6, generator=source)
    weight_N = torch.rand(6, generator=source) + 0.5
    names = [f"{step}:{number}" for number in range(6)]
    ends = [sum(parts[: index + 1]) for index in range(len(parts))]
    places = [slice(end - count, end) for end, count in zip(ends, parts, strict=True)]
    return tuple(Points(x_N3[at], y_N[at], weight_N[at], tuple(names[at])) for at in places)


def squares(model: nn.Module, batch: Points) -> Loss:
    error_N = model(batch.x_N3)[:, 0] - batch.y_N
    total = (batch.weight_N * error_N.square()).sum()
    metrics = {"distance": float((batch.weight_N * error_N.detach().abs()).sum())}
    return Loss(total=total, weight=float(batch.weight_N.sum()), metrics=metrics)


@dataclass
class Run:
    """Jobs on one folder, each of which goes on where the last one saved."""

    out: Path
    recipe: Recipe = RECIPE
    objective: Objective = squares
    parts: Sequence[int] = (6,)
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None
    decay: float | None = None
    taken: list[int] = field(default_factory=list)

    def __call__(self) -> str:
        torch.manual_seed(1)
        self.model = model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD([{"params": list(model.parameters()), "peak": RATE}], lr=RATE)
        self.ema = None if self.decay is None else EMA(model, self.decay)
        self.saves, self.best = Saves(self.out / "checkpoints", World(), keep=9), Best("loss")
        self.best.patience = self.recipe.evaluation.patience
        latest = self.saves.latest()
        facts = self.saves.load(latest, model, optimizer, self.ema) if latest else {}
        if facts:
            self.best.restore(facts["best"])
        self.job = Job(
            recipe=self.recipe,
            steps=self.recipe.steps or 0,
            model=model,
            module=Objected(model, self.objective),
            optimizer=optimizer,
            take=self._take,
            world=World(),
            saves=self.saves,
            log=Log(self.out),
            progress=Progress(0),
            best=self.best,
            evaluate=None if self.evaluate is None else self._measure,
            ema=self.ema,
            done=facts.get("step", 0),
            position=facts.get("position", 0),
            skipped=facts.get("skipped", 0),
            measured=facts.get("measured", 0),
        )
        try:
            return train(self.job)
        finally:
            self.saves.close()
            self.job.log.close()

    def _take(self) -> Taken:
        step = self.job.position // 6
        self.taken.append(step)
        return Taken(points(step, self.parts), position=6 * (step + 1))

    def _measure(self) -> dict[str, float]:
        assert self.evaluate is not None
        return self.evaluate(self.model)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "log.jsonl").read_text().splitlines()]

    @property
    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    @property
    def steps_saved(self) -> list[int]:
        return sorted(int(path.name.removeprefix("step-")) for path in self.saves.folder.glob("step-*"))


def start() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(3, 1)


def mean_gradient(model: nn.Module, batches: Sequence[Points]) -> Tensor:
    """Of the mean over all points of a step by their weights."""
    losses = [squares(model, batch) for batch in batches]
    mean = sum((loss.total for loss in losses), torch.zeros(())) / sum(loss.weight for loss in losses)
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(mean, list(model.parameters()))])


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("parts", [(6,), (1, 5), (2, 1, 3)])
def test_a_step_follows_the_mean_over_all_micro_batches(tmp_path: Path, parts: Sequence[int]) -> None:
    run = Run(tmp_path, replace(RECIPE, steps=1), parts=parts)
    run()
    gradient = mean_gradient(start(), points(0))
    torch.testing.assert_close(run.weights, flat(start()) - RATE * gradient, rtol=1e-5, atol=1e-6)
    assert run.rows[0]["grad_norm"] == pytest.approx(float(gradient.norm()), rel=1e-5)
    assert run.rows[0]["loss"] == pytest.approx(
        squares(start(), *points(0)).total.item() / weight(0), rel=1e-5
    )


def weight(step: int) -> float:
    return float(points(step)[0].weight_N.sum())


class OneByOne:
    """Micro-batches that are made when asked for, and know whether the one before is gone."""

    def __init__(self, step: int) -> None:
        self.step, self.are_gone = step, [True]

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Points]:
        for number in range(3):
            assert self.are_gone.pop()
            batch = points(self.step, (2, 2, 2))[number]
            finalize(batch, self.are_gone.append, True)
            yield batch
            del batch


class LazyRun(Run):
    def _take(self) -> Any:
        return replace(super()._take(), batches=OneByOne(self.job.position // 6))


def test_no_micro_batch_is_kept_while_the_next_one_is_made(tmp_path: Path) -> None:
    lazy, run = LazyRun(tmp_path / "lazy"), Run(tmp_path / "run", parts=(2, 2, 2))
    assert lazy() == run() == "finished"
    assert torch.equal(lazy.model.weight, run.model.weight)


def test_gradients_are_clipped_and_logged_as_they_were(tmp_path: Path) -> None:
    run = Run(tmp_path, replace(RECIPE, steps=1, clip_norm=0.01))
    run()
    change = run.weights - flat(start())
    assert float(change.norm()) == pytest.approx(RATE * 0.01, rel=1e-3)
    assert run.rows[0]["grad_norm"] > 0.1


def test_rows_of_the_log_are_means_over_their_steps(tmp_path: Path) -> None:
    run = Run(tmp_path, replace(RECIPE, steps=5, log_every=2))
    each = Run(tmp_path / "each", replace(RECIPE, steps=5))
    run()
    each()
    *rows, last = run.rows
    assert [row["step"] for row in rows] == [2, 4, 5]
    assert last == {"step": 5, "event": "finished"}
    for row, steps in zip(rows, ((0, 1), (2, 3), (4,)), strict=True):
        total = sum(weight(step) for step in steps)
        for name in ("loss", "distance"):
            mean = sum(each.rows[step][name] * weight(step) for step in steps) / total
            assert row[name] == pytest.approx(mean)
        assert row["trained"] == pytest.approx(total)
        assert row["tokens_per_second"] == pytest.approx(60 * len(steps) / row["seconds"])
        assert row["tiles_per_second"] == pytest.approx(3 * len(steps) / row["seconds"])
        assert row["position"] == 6 * (steps[-1] + 1)
        assert row["data_wait"] == 0


def test_rates_follow_the_schedule(tmp_path: Path) -> None:
    schedule = Schedule(kind="cosine", warmup=2, final=0.1)
    run = Run(tmp_path, replace(RECIPE, schedule=schedule))
    run()
    expected = [RATE * lr_scale(step, 6, schedule) for step in range(6)]
    assert [row["lr"] for row in run.rows[:-1]] == pytest.approx(expected)
    assert len(set(expected)) > 3


def test_checkpoints_come_when_they_are_due_and_at_the_end(tmp_path: Path) -> None:
    run = Run(tmp_path, replace(RECIPE, steps=5))
    assert run() == "finished"
    assert run.steps_saved == [2, 4, 5]


def test_a_finished_run_has_nothing_to_do(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run()
    weights, taken = run.weights, list(run.taken)
    assert run() == "finished"
    assert torch.equal(run.weights, weights)
    assert run.taken == taken


def noisy(model: nn.Module, batch: Points) -> Loss:
    """With numbers of the step's own random source."""
    return squares(model, replace(batch, x_N3=batch.x_N3 + 0.1 * torch.randn(batch.x_N3.shape)))


class Signalled:
    """An objective during which the process is asked to stop, in the step that begins with `key`."""

    def __init__(self, number: signal.Signals, key: str) -> None:
        self.number, self.key = number, key

    def __call__(self, model: nn.Module, batch: Points) -> Loss:
        if batch.keys[0] == self.key:
            self.key = ""
            signal.raise_signal(self.number)
        return noisy(model, batch)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_finishes_its_step_saves_and_continues_exactly(
    tmp_path: Path, number: signal.Signals
) -> None:
    whole = Run(tmp_path / "whole", objective=noisy, decay=0.5)
    whole()
    handler = signal.getsignal(number)
    run = Run(tmp_path / "parts", objective=Signalled(number, "2:0"), decay=0.5)
    assert run() == "interrupted"
    assert signal.getsignal(number) is handler
    assert run.rows[-1] == {"step": 3, "event": "interrupted"}
    assert run.steps_saved == [2, 3]
    assert run() == "finished"
    assert run.taken == [0, 1, 2, 3, 4, 5]
    assert torch.equal(run.weights, whole.weights)
    assert run.ema is not None
    assert whole.ema is not None
    assert all(torch.equal(value, whole.ema.tensors()[name]) for name, value in run.ema.tensors().items())


def test_a_measurement_that_an_interruption_took_is_made_later(tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole", EVALUATED, evaluate=size)
    run = Run(tmp_path / "parts", EVALUATED, objective=Signalled(signal.SIGTERM, "3:0"), evaluate=size)
    whole.objective = noisy
    whole()
    assert run() == "interrupted"
    assert [row["step"] for row in run.rows if "val_loss" in row] == [2]
    assert run() == "finished"
    measured = [[row for row in one.rows if "val_loss" in row] for one in (run, whole)]
    assert measured[0] == measured[1]
    assert run.best.state() == whole.best.state()
    assert run.saves.best() is not None
    assert run.saves.best().name == whole.saves.best().name  # type: ignore[union-attr]


def test_a_best_checkpoint_knows_of_its_measurement(tmp_path: Path) -> None:
    """Also where it was saved before the measurement could be made."""
    values = iter([3.0, 2.0, 1.0])
    objective = Signalled(signal.SIGTERM, "3:0")
    run = Run(tmp_path, EVALUATED, objective=objective, evaluate=lambda _: {"val_loss": next(values)})
    run()
    run()
    for step, value in ((2, 3.0), (4, 2.0), (6, 1.0)):
        index = json.loads((run.saves.folder / f"step-{step:08d}" / "checkpoint.json").read_text())
        assert index["facts"]["measured"] == step
        assert index["facts"]["best"]["value"] == value


def size(model: nn.Module) -> dict[str, float]:
    return {"val_loss": float(flat(model).norm())}


def not_finite(*steps: int) -> Objective:
    """The loss of these steps is not a number; its gradient would be."""

    def objective(model: nn.Module, batch: Points) -> Loss:
        loss = squares(model, batch)
        is_bad = batch.keys[0] in [f"{step}:0" for step in steps]
        return replace(loss, total=loss.total * math.nan) if is_bad else loss

    return objective


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path, objective=not_finite(3))
    with pytest.raises(TrainingError, match=r"step 4: loss nan, .* first 3:0, 3:1") as raised:
        run()
    told = str(raised.value)
    assert (
        "--resume --set execution.non_finite=skip leaves such steps out and goes on from step-00000002;"
        in told
    )
    assert "a lower learning rate needs a new run" in told
    assert run.rows[-1]["event"] == "not finite"
    assert run.rows[-1]["keys"] == [f"3:{number}" for number in range(6)]
    weights = run.weights
    assert weights.isfinite().all()
    assert run.steps_saved == [2]
    run.objective = squares
    assert run() == "finished"
    assert run.taken == [0, 1, 2, 3, 2, 3, 4, 5]


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    def objective(model: nn.Module, batch: Points) -> Loss:
        loss = squares(model, batch)
        return replace(loss, total=loss.total + (model(batch.x_N3) * 0).abs().sqrt().sum())

    run = Run(tmp_path, objective=objective)
    with pytest.raises(
        TrainingError, match=r"step 1: loss \d.*gradient norm nan.* goes on from the beginning"
    ):
        run()
    assert torch.equal(run.weights, flat(start()))


def test_a_step_that_is_not_finite_is_skipped_where_that_is_allowed(tmp_path: Path) -> None:
    """It moves neither the weights nor their averages, and the mean of the log leaves it out."""
    skipping = Execution(non_finite="skip", non_finite_limit=2)
    run = Run(tmp_path, replace(RECIPE, log_every=3, execution=skipping), objective=not_finite(1), decay=0.5)
    assert run() == "finished"
    (event,) = [row for row in run.rows if row.get("event") == "not finite"]
    assert (event["step"], event["loss"], event["keys"]) == (2, "nan", [f"1:{n}" for n in range(6)])
    model, averages = start(), flat(start())
    for step in (0, 2, 3, 4, 5):
        gradient = mean_gradient(model, points(step))
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradient.split([3, 1]), strict=True):
                p.sub_(RATE * g.view_as(p))
        averages = 0.5 * averages + 0.5 * flat(model)
    torch.testing.assert_close(run.weights, flat(model))
    assert run.ema is not None
    torch.testing.assert_close(torch.cat([v.flatten() for v in run.ema.tensors().values()]), averages)
    first = next(row for row in run.rows if row["step"] == 3 and "loss" in row)
    assert first["trained"] == pytest.approx(weight(0) + weight(2))
    assert run.job.skipped == 1


def test_too_many_skipped_steps_stop_the_run_also_when_it_was_resumed(tmp_path: Path) -> None:
    skipping = replace(RECIPE, execution=Execution(non_finite="skip", non_finite_limit=1))
    run = Run(tmp_path, replace(skipping, steps=3), objective=not_finite(1, 4))
    assert run() == "finished"
    run.recipe = skipping
    with pytest.raises(TrainingError, match=r"step 5: .* 2 such steps.* execution\.non_finite_limit=N"):
        run()


def test_a_step_without_a_target_is_named(tmp_path: Path) -> None:
    def objective(model: nn.Module, batch: Points) -> Loss:
        return replace(squares(model, batch), weight=0.0)

    with pytest.raises(TrainingError, match="step 1 has no target"):
        Run(tmp_path, objective=objective)()


def test_measurements_are_logged_and_the_best_checkpoint_stays(tmp_path: Path) -> None:
    values = iter([3.0, 1.0, 2.0])
    seen = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        seen.append(model.training)
        return {"val_loss": next(values)}

    run = Run(tmp_path, replace(EVALUATED, saving=Saving(every=2, keep=9)), evaluate=evaluate)
    assert run() == "finished"
    measured = [row for row in run.rows if "val_loss" in row]
    assert measured == [{"step": 2 * n, "val_loss": value} for n, value in ((1, 3.0), (2, 1.0), (3, 2.0))]
    assert seen == [False] * 3
    assert run.model.training
    assert run.saves.best() == run.saves.folder / "step-00000004"


def test_a_measurement_that_fails_loses_no_step(tmp_path: Path) -> None:
    """The step was saved before, and is measured when the run goes on."""

    def fail(model: nn.Module) -> dict[str, float]:
        if run.job.done == 4:
            raise MemoryError("too large an answer")
        return size(model)

    run = Run(tmp_path / "run", EVALUATED, evaluate=fail)
    with pytest.raises(MemoryError):
        run()
    run.saves.wait()
    run.evaluate = size
    assert run() == "finished"
    assert run.taken == [0, 1, 2, 3, 4, 5]
    whole = Run(tmp_path / "whole", EVALUATED, evaluate=size)
    whole()
    assert torch.equal(run.weights, whole.weights)
    measured = [[row for row in one.rows if "val_loss" in row] for one in (run, whole)]
    assert measured[0] == measured[1]


def test_a_last_step_is_measured_even_if_it_is_not_due(tmp_path: Path) -> None:
    run = Run(tmp_path, replace(RECIPE, steps=5, evaluation=Evaluation(every=3)), evaluate=size)
    run()
    assert [row["step"] for row in run.rows if "val_loss" in row] == [3, 5]


def test_patience_ends_the_run_for_good(tmp_path: Path) -> None:
    values = iter([1.0, 2.0, 2.0, 0.5])
    recipe = replace(RECIPE, evaluation=Evaluation(every=1, patience=2))
    run = Run(tmp_path, recipe, evaluate=lambda _: {"val_loss": next(values)})
    assert run() == "no better"
    assert run.rows[-1] == {"step": 3, "event": "no better"}
    assert run.steps_saved == [1, 2, 3]
    assert run() == "no better"
    assert run.taken == [0, 1, 2]


def test_averaged_weights_are_what_is_measured(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        seen.append(flat(model))
        return {"val_loss": 0.0}

    recipe = replace(RECIPE, steps=1, evaluation=Evaluation(every=1))
    run = Run(tmp_path, recipe, evaluate=evaluate, decay=0.75)
    run()
    torch.testing.assert_close(seen[0], 0.75 * flat(start()) + 0.25 * run.weights)
    assert not torch.equal(seen[0], run.weights)
