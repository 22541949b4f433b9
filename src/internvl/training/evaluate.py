"""Measurements on held-out records while a run goes on, and what they say about going on.

The loss is the run's own objective; "cider" and "exact" compare the answers that chat would give with all
answers on record.
Every process takes its share and ends with the same numbers. Knows no optimiser and no files of its own.
Shape letters: Q questions, T tokens of an answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from typing import Any

import torch
from torch import Tensor

from internvl.data.bad_samples import BROKEN, BadSample, key_of
from internvl.data.batch import Batch, pack
from internvl.data.example import Example
from internvl.data.meta import DataSet
from internvl.data.places import Asker, Maker
from internvl.errors import InputError, TrainingError
from internvl.evaluation.scores import SCORES
from internvl.models.vlm import VLM
from internvl.processing.processor import Processor
from internvl.training.answers import Answers, Asked
from internvl.training.loss import Objective
from internvl.training.objectives import next_token
from internvl.training.precision import autocast
from internvl.training.recipe import Evaluation
from internvl.training.world import World, whole

EXAMPLES_AT_ONCE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """The usable rows of a data set that are measured, and the answers on record to each one's questions."""

    dataset: DataSet
    rows: tuple[int, ...]
    references: tuple[tuple[tuple[str, ...], ...], ...]


class Evaluator:
    """Measures `model` on at most `settings.examples` records of each data set, evenly spread over it.

    The records are read once when it is made: `bad` are those that cannot be used. `prepare` is applied to
    every batch (cached features); `autocast` as in training. Raises InputError for a data set of which no
    record can be used.
    """

    def __init__(
        self,
        model: VLM,
        processor: Processor,
        datasets: Sequence[DataSet],
        examples: Asker[Example],
        settings: Evaluation,
        objective: Objective,
        *,
        world: World | None = None,
        prepare: Callable[[Batch], Batch] | None = None,
        autocast: str | None = None,
    ) -> None:
        self.model, self.processor, self.examples = model, processor, examples
        self.settings, self.objective, self.world = settings, objective, world or World()
        self.prepare, self.autocast = prepare, autocast
        self.answers = Answers(model, processor, settings.max_new_tokens, prepare=prepare)
        self.bad: list[BadSample] = []
        self.sets = tuple(self._held(replace(dataset, augment=False)) for dataset in datasets)

    def evaluate(self) -> dict[str, float]:
        """`val_loss` and, where the settings ask for it, `val_cider` or `val_exact`: of each data set as
        `val_loss/NAME`, and their mean. The model is to be in evaluation mode."""
        metric = self.settings.metric
        row: dict[str, float] = {}
        with torch.no_grad(), whole(self.model):
            row |= _with_mean("val_loss", self._losses())
            if metric != "loss":
                scores = {held.dataset.name: self._score(held) for held in self.sets}
                row |= _with_mean(f"val_{metric}", scores)
        return row

    def _held(self, dataset: DataSet) -> _Held:
        rows, references = [], []
        for row in spread(dataset.size, self.settings.examples):
            try:
                self._example(dataset, row)
                asked = [] if self.settings.metric == "loss" else self._ask(dataset, row)
            except BROKEN as error:
                self.bad.append(BadSample.of(dataset, row, row, error))
                continue
            rows.append(row)
            references.append(tuple(one.question.references for one in asked))
        if not rows:
            reason = self.bad[-1].reason if self.bad else "evaluation.examples is 0"
            raise InputError(f"no record of {dataset.name} can be used to evaluate: {reason}")
        return _Held(dataset=dataset, rows=tuple(rows), references=tuple(references))

    def _example(self, dataset: DataSet, row: int) -> Example:
        return self.examples.example(dataset.source.row(row), dataset, seed=0, key=key_of(dataset, row))

    def _ask(self, dataset: DataSet, row: int) -> list[Asked]:
        return self.answers.read(self.examples, dataset, row)

    def _mine(self, held: _Held) -> Iterator[range]:
        """Places of this process's share among the rows, a few at a time."""
        mine = range(self.world.rank, len(held.rows), self.world.size)
        for first in range(0, len(mine), EXAMPLES_AT_ONCE):
            yield mine[first : first + EXAMPLES_AT_ONCE]

    def _batch(self, examples: Sequence[Example]) -> Batch:
        batch = pack(examples, self.model.config.tiling.tile_size)
        return (self.prepare(batch) if self.prepare else batch).to(self.world.device)

    def _losses(self) -> dict[str, float]:
        kept = self.objective.state() if hasattr(self.objective, "state") else None
        sums = torch.zeros(len(self.sets), 2, dtype=torch.float64)
        for row_2, held in zip(sums, self.sets, strict=True):
            for places in self._mine(held):
                batch = self._batch([self._example(held.dataset, held.rows[place]) for place in places])
                with autocast(self.autocast, self.world.device):
                    row_2 += _loss_2(self.objective, self.model, batch)
        if kept is not None:
            self.objective.restore(kept)  # type: ignore[attr-defined]
        totals = self.world.sum(sums).tolist()
        names = (held.dataset.name for held in self.sets)
        return {
            name: total / weight if weight else math.nan
            for name, (total, weight) in zip(names, totals, strict=True)
        }

    def _score(self, held: _Held) -> float:
        references = [one for row in held.references for one in row]
        answers = [self.processor.text(ids) for ids in self._answers(held, len(references))]
        return SCORES[self.settings.metric](answers, references)[0]

    def _answers(self, held: _Held, count: int) -> list[list[int]]:
        """The ids of every answer, in order. Processes add up tables that hold 0 but for their own rows."""
        starts = list(accumulate(map(len, held.references), initial=0))
        table_QT = torch.zeros(count, self.settings.max_new_tokens, dtype=torch.long)
        for places in self._mine(held):
            numbers = [number for place in places for number in range(starts[place], starts[place + 1])]
            asked = [one for place in places for one in self._ask(held.dataset, held.rows[place])]
            with autocast(
                self.autocast, self.world.device
            ):  # as trained: what is frozen may be narrower than what is not
                answers = self.answers.ids(asked)
            for number, ids in zip(numbers, answers, strict=True):
                table_QT[number, : len(ids)] = 1 + torch.tensor(ids)
        return [[id - 1 for id in row if id] for row in self.world.sum(table_QT).tolist()]


def spread(size: int, count: int) -> Iterable[int]:
    """`count` of `size` rows, evenly spread, in order; all of them where there are fewer."""
    count = min(size, count)
    return (index * size // count for index in range(count))


@torch.no_grad()
def mean_loss(
    model: VLM, dataset: DataSet, rows: Iterable[int], examples: Maker[Example], bad: list[BadSample]
) -> float | None:
    """The mean loss of an answer's token over `rows`; those that cannot be used are added to `bad`. Of a
    preference only the chosen answer counts.

    None where no row can be used. The model is to be in evaluation mode.
    """
    tile_size, device = model.config.tiling.tile_size, model.llm.embed.weight.device
    numbers, sum_2 = iter(rows), torch.zeros(2, dtype=torch.float64)
    while chunk := list(islice(numbers, EXAMPLES_AT_ONCE)):
        made = []
        for row in chunk:
            try:
                values = dataset.source.row(row)
                one = examples.example(values, dataset, seed=0, key=key_of(dataset, row))
                made.append(replace(one, branches=one.branches[:1]) if one.is_preference else one)
            except BROKEN as error:
                bad.append(BadSample.of(dataset, row, row, error))
        if made:
            sum_2 += _loss_2(next_token, model, pack(made, tile_size).to(device))
    total, weight = sum_2.tolist()
    return total / weight if weight else None


def _loss_2(objective: Objective, model: VLM, batch: Batch) -> Tensor:
    """The total of a loss and the weight it is divided by, (2,)."""
    loss = objective(model, batch)
    return torch.tensor([float(loss.total), loss.weight], dtype=torch.float64)


def _with_mean(name: str, values: Mapping[str, float]) -> dict[str, float]:
    each = {f"{name}/{dataset}": value for dataset, value in values.items()}
    return {name: sum(values.values()) / len(values), **each}


class Best:
    """Which measurement was the best, by the loss (lower) or a score (higher), and whether to go on."""

    def __init__(self, metric: str, patience: int | None = None, of: str = "") -> None:
        """`of` tells what is measured on: where it or the metric has changed, old values mean nothing."""
        if patience is not None and patience < 1:
            raise TrainingError(f"evaluation.patience counts from 1, got {patience}")
        self.metric, self.patience, self.of = metric, patience, of
        self.value: float | None = None
        self.step: int | None = None
        self.waited = 0

    def update(self, row: Mapping[str, float], step: int | None = None) -> bool:
        """Whether `row`, measured after `step`, is the best so far; what is not a number never is."""
        name = f"val_{self.metric}"
        if name not in row:
            raise TrainingError(f"no {name!r} was measured, only {', '.join(row) or 'nothing'}")
        sign = -1.0 if self.metric == "loss" else 1.0
        value = row[name]
        is_better = not math.isnan(value) and (self.value is None or sign * value > sign * self.value)
        self.waited = 0 if is_better else self.waited + 1
        if is_better:
            self.value, self.step = value, step
        return is_better

    @property
    def is_hopeless(self) -> bool:
        """`patience` measurements in a row were no better."""
        return self.patience is not None and self.waited >= self.patience

    def state(self) -> dict[str, Any]:
        measured = {"metric": self.metric, "of": self.of}
        return {"value": self.value, "step": self.step, "waited": self.waited, **measured}

    def restore(self, state: Mapping[str, Any]) -> None:
        measured = (state.get("metric", self.metric), state.get("of", self.of))
        if measured == (self.metric, self.of):
            self.value, self.step, self.waited = state["value"], state.get("step"), int(state["waited"])


def best_of(evaluation: Evaluation) -> Best:
    """As the recipe asks for it."""
    meta = None if evaluation.data is None else evaluation.data.meta
    return Best(evaluation.metric, evaluation.patience, f"{evaluation.examples} records of {meta}")
