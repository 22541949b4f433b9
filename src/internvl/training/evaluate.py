"""Measurements on held-out records while a run goes on, and what they say about going on.

The loss is the run's own objective; "cider" and "exact" compare greedy answers with all answers on record.
Every process takes its share and ends with the same numbers. Knows no optimiser and no files of its own.
Shape letters: Q questions, T tokens of an answer.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from internvl.data.bad_samples import BROKEN, BadSample, key_of
from internvl.data.batch import Batch, pack
from internvl.data.example import Branch, Example
from internvl.data.meta import DataSet
from internvl.data.places import Maker
from internvl.errors import InputError, TrainingError
from internvl.evaluation.scores import cider_d
from internvl.generation.generate import generate
from internvl.generation.prompt import Prompt, check_room
from internvl.generation.sampling import Sampling
from internvl.models.vlm import VLM
from internvl.processing.processor import Processor
from internvl.training.forward import vision_tokens
from internvl.training.objectives import Objective
from internvl.training.recipe import Evaluation
from internvl.training.world import World, whole

EXAMPLES_AT_ONCE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What follows an example's prefix before the answer, and every answer on record."""

    head: tuple[int, ...]
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """The usable rows of a data set that are measured, and the questions of each."""

    dataset: DataSet
    rows: tuple[int, ...]
    questions: tuple[tuple[_Question, ...], ...]


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
        examples: Maker,
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
        count = min(self.settings.examples, dataset.size)
        rows, questions = [], []
        for row in (index * dataset.size // count for index in range(count)):
            try:
                example = self._example(dataset, row)
                asked = _questions(example, self.processor)
                self._check_room(example, asked)
            except BROKEN as error:
                self.bad.append(_bad(dataset, row, error))
                continue
            rows.append(row)
            questions.append(asked)
        if not rows:
            reason = self.bad[-1].reason if self.bad else "evaluation.examples is 0"
            raise InputError(f"no record of {dataset.name} can be used to evaluate: {reason}")
        return _Held(dataset=dataset, rows=tuple(rows), questions=tuple(questions))

    def _check_room(self, example: Example, questions: Sequence[_Question]) -> None:
        if self.settings.metric != "loss":
            for question in questions:
                length = len(example.prefix) + len(question.head)
                check_room(length, self.settings.max_new_tokens, self.model.config.text)

    def _example(self, dataset: DataSet, row: int) -> Example:
        return self.examples.example(dataset.source.row(row), dataset, seed=0, key=key_of(dataset, row))

    def _parts(self, held: _Held) -> Iterator[tuple[list[int], list[Example]]]:
        """This process's share, a few at a time: places among the rows, and the examples."""
        mine = range(self.world.rank, len(held.rows), self.world.size)
        for first in range(0, len(mine), EXAMPLES_AT_ONCE):
            places = list(mine[first : first + EXAMPLES_AT_ONCE])
            yield places, [self._example(held.dataset, held.rows[place]) for place in places]

    def _batch(self, examples: Sequence[Example]) -> Batch:
        batch = pack(examples, self.model.config.tiling.tile_size)
        return (self.prepare(batch) if self.prepare else batch).to(self.world.device)

    def _losses(self) -> dict[str, float]:
        kept = self.objective.state() if hasattr(self.objective, "state") else None
        sums = torch.zeros(len(self.sets), 2, dtype=torch.float64)
        dtype = getattr(torch, self.autocast or "bfloat16")
        for row_2, held in zip(sums, self.sets, strict=True):
            for _, examples in self._parts(held):
                batch = self._batch(examples)
                with torch.autocast(self.world.device.type, dtype, enabled=self.autocast is not None):
                    loss = self.objective(self.model, batch)
                row_2 += torch.tensor([float(loss.total), loss.weight], dtype=torch.float64)
        if kept is not None:
            self.objective.restore(kept)  # type: ignore[attr-defined]
        totals = self.world.sum(sums).tolist()
        names = (held.dataset.name for held in self.sets)
        return {
            name: total / weight if weight else math.nan
            for name, (total, weight) in zip(names, totals, strict=True)
        }

    def _score(self, held: _Held) -> float:
        questions = [question for row in held.questions for question in row]
        references = [question.references for question in questions]
        decode = self.processor.tokenizer.decode
        answers = [decode(ids).strip() for ids in self._answers(held, len(questions))]
        if self.settings.metric == "cider":
            return cider_d(answers, references)[0]
        return sum(map(_is_exact, answers, references)) / len(answers)

    def _answers(self, held: _Held, count: int) -> list[list[int]]:
        """The ids of every answer, in order. Processes add up tables that hold 0 but for their own rows."""
        starts = [0]
        for row in held.questions:
            starts.append(starts[-1] + len(row))
        table_QT = torch.zeros(count, self.settings.max_new_tokens, dtype=torch.long)
        for places, examples in self._parts(held):
            numbers = [number for place in places for number in range(starts[place], starts[place + 1])]
            prompts = [
                prompt
                for place, example in zip(places, examples, strict=True)
                for prompt in self._prompts(example, held.questions[place])
            ]
            for number, made in zip(numbers, generate(self.model.llm, prompts), strict=True):
                table_QT[number, : len(made.ids)] = 1 + torch.tensor(made.ids)
        return [[id - 1 for id in row if id] for row in self.world.sum(table_QT).tolist()]

    def _prompts(self, example: Example, questions: Sequence[_Question]) -> Iterator[Prompt]:
        batch = self._batch([example])
        vision_SD = vision_tokens(self.model, batch)
        sampling = Sampling(max_new_tokens=self.settings.max_new_tokens, stop_ids=self.processor.stop_ids)
        for question in questions:
            ids_T = torch.tensor([*example.prefix, *question.head], device=self.world.device)
            shown_S = batch.slots_S < len(ids_T)  # later turns may bring pictures of their own
            x_TD = self.model.embed(ids_T, batch.slots_S[shown_S], vision_SD[shown_S])
            yield Prompt(x_TD, sampling)


def _questions(example: Example, processor: Processor) -> tuple[_Question, ...]:
    """The branches by what comes before their first answer; several answers to one question are together."""
    answers: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for branch in (branch for branch in example.branches if any(branch.trained)):
        head, answer = _first_answer(branch)
        answers[head].append(processor.tokenizer.decode(answer).strip())
    return tuple(_Question(head=head, references=tuple(texts)) for head, texts in answers.items())


def _first_answer(branch: Branch) -> tuple[tuple[int, ...], tuple[int, ...]]:
    start = branch.trained.index(True)
    stop = next((place for place in range(start, len(branch.ids)) if not branch.trained[place]), None)
    return branch.ids[:start], branch.ids[start:stop]


def _is_exact(answer: str, references: Sequence[str]) -> bool:
    """Equal to one of them but for case, spaces and a full stop at the end."""
    return _plain(answer) in map(_plain, references)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def _with_mean(name: str, values: Mapping[str, float]) -> dict[str, float]:
    each = {f"{name}/{dataset}": value for dataset, value in values.items()}
    return {name: sum(values.values()) / len(values), **each}


def _bad(dataset: DataSet, row: int, error: Exception) -> BadSample:
    return BadSample(
        key=key_of(dataset, row),
        path=dataset.source.where(row),
        position=row,
        reason=str(error),
        error=type(error).__name__,
    )


class Best:
    """Which measurement was the best, by the loss (lower) or a score (higher), and whether to go on."""

    def __init__(self, metric: str, patience: int | None = None) -> None:
        if patience is not None and patience < 1:
            raise TrainingError(f"evaluation.patience counts from 1, got {patience}")
        self.metric, self.patience = metric, patience
        self.value: float | None = None
        self.waited = 0

    def update(self, row: Mapping[str, float]) -> bool:
        """Whether `row` is the best so far; what is not a number never is."""
        name = f"val_{self.metric}"
        if name not in row:
            raise TrainingError(f"no {name!r} was measured, only {', '.join(row) or 'nothing'}")
        sign = -1.0 if self.metric == "loss" else 1.0
        value = row[name]
        is_better = not math.isnan(value) and (self.value is None or sign * value > sign * self.value)
        self.value, self.waited = (value, 0) if is_better else (self.value, self.waited + 1)
        return is_better

    @property
    def is_hopeless(self) -> bool:
        """`patience` measurements in a row were no better."""
        return self.patience is not None and self.waited >= self.patience

    def state(self) -> dict[str, Any]:
        return {"value": self.value, "waited": self.waited}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.value, self.waited = state["value"], int(state["waited"])
