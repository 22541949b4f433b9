"""A model's greedy answers to the questions of held-out records, with the answers on record beside them.

The one path by which answers are measured, during a run and by `internvl eval`; the prompt is the one that
chat makes of the same question. Knows no scores, no optimiser, no files of its own. Shape letters: S slots, D
text width, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from internvl.data.bad_samples import BROKEN, BadSample, key_of
from internvl.data.batch import Batch, pack
from internvl.data.meta import DataSet
from internvl.data.places import Asker
from internvl.data.questions import Question
from internvl.generation.generate import generate
from internvl.generation.prompt import Prompt, check_room, context_limit
from internvl.generation.sampling import Sampling
from internvl.models.vlm import VLM
from internvl.processing.processor import Inputs, Processor
from internvl.training.forward import vision_tokens


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asked:
    """A question that was read and fits the model. `key` names it: the record's, and a number where the
    record asks several."""

    key: str
    question: Question
    inputs: Inputs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """`text` is what `chat` returns; `is_new` tells it from one that was there before."""

    key: str
    question: Question
    text: str
    is_new: bool = True


class Answers:
    """What `model`, in evaluation mode, answers: at most `max_new_tokens` tokens, the likeliest at each step.

    `prepare` is applied to the pictures of a question before they are encoded (cached features).
    """

    def __init__(
        self,
        model: VLM,
        processor: Processor,
        max_new_tokens: int,
        *,
        prepare: Callable[[Batch], Batch] | None = None,
    ) -> None:
        self.model, self.processor, self.prepare = model, processor, prepare
        self.sampling = Sampling(max_new_tokens=max_new_tokens, stop_ids=processor.stop_ids)

    def read(self, examples: Asker[Any], dataset: DataSet, row: int) -> list[Asked]:
        """The questions of a row, pictures decoded and cut. Raises one of `BROKEN`, also for a prompt that
        leaves the answer no room."""
        return [self._read(*one) for one in _questions(examples, dataset, row)]

    def stream(
        self,
        examples: Asker[Any],
        dataset: DataSet,
        rows: Iterable[int],
        bad: list[BadSample],
        *,
        at_once: int = 8,
        known: Callable[[str, Question], str | None] = lambda key, question: None,
    ) -> Iterator[Answer]:
        """Every question of `rows` with its answer, in order, `at_once` asked together.

        What is `known` is not asked again. Rows that cannot be used are added to `bad`.
        """
        waiting: list[Asked | Answer] = []
        for row in rows:
            try:
                waiting += self._ask(examples, dataset, row, known)
            except BROKEN as error:
                bad.append(BadSample.of(dataset, row, row, error))
            if sum(isinstance(one, Asked) for one in waiting) >= at_once:
                yield from self._answer(waiting)
                waiting = []
        yield from self._answer(waiting)

    def _ask(
        self, examples: Asker[Any], dataset: DataSet, row: int, known: Callable[[str, Question], str | None]
    ) -> list[Asked | Answer]:
        asked: list[Asked | Answer] = []
        for key, question in _questions(examples, dataset, row):
            text = known(key, question)
            asked.append(
                self._read(key, question)
                if text is None
                else Answer(key=key, question=question, text=text, is_new=False)
            )
        return asked

    def _answer(self, waiting: Sequence[Asked | Answer]) -> Iterator[Answer]:
        texts = iter(self.texts([one for one in waiting if isinstance(one, Asked)]))
        for one in waiting:
            yield (
                one
                if isinstance(one, Answer)
                else Answer(key=one.key, question=one.question, text=next(texts))
            )

    def _read(self, key: str, question: Question) -> Asked:
        config, room = self.model.config.text, self.sampling.max_new_tokens
        check_room(1, room, config)
        inputs = self.processor(question.conversation, max_tokens=context_limit(config) - room)
        check_room(len(inputs.ids), room, config)
        return Asked(key=key, question=question, inputs=inputs)

    @torch.no_grad()
    def ids(self, asked: Sequence[Asked]) -> list[tuple[int, ...]]:
        """The answers as ids, each the one its question gets alone. Equal pictures are encoded once."""
        seen: dict[tuple[str, ...], Tensor] = {}
        prompts = []
        for inputs in (one.inputs for one in asked):
            if inputs.image_keys not in seen:
                seen[inputs.image_keys] = self._encode(inputs)
            prompts.append(Prompt(self._embed(inputs, seen[inputs.image_keys]), self.sampling))
        return [made.ids for made in generate(self.model.llm, prompts)]

    def texts(self, asked: Sequence[Asked]) -> list[str]:
        """The answers as `chat` returns them."""
        return [self.processor.text(ids) for ids in self.ids(asked)]

    def _encode(self, inputs: Inputs) -> Tensor:
        """Vision tokens (S, D) of all pictures; none of a question in text."""
        weight_VD = self.model.llm.embed.weight
        if inputs.tiles_N3HW is None:
            return weight_VD[:0]
        pictures = replace(pack((), self.model.config.tiling.tile_size), tiles_N3HW=inputs.tiles_N3HW)
        batch = self.prepare(pictures) if self.prepare else pictures
        return vision_tokens(self.model, batch.to(weight_VD.device))

    def _embed(self, inputs: Inputs, vision_SD: Tensor) -> Tensor:
        ids_T, slots_S = (
            torch.tensor(values, dtype=torch.long, device=vision_SD.device)
            for values in (inputs.ids, inputs.slots)
        )
        return self.model.embed(ids_T, slots_S, vision_SD)


def _questions(examples: Asker[Any], dataset: DataSet, row: int) -> list[tuple[str, Question]]:
    """The questions of a row by their keys."""
    questions = examples.ask(dataset.source.row(row), dataset)
    key = key_of(dataset, row)
    return [
        (key if len(questions) == 1 else f"{key}#{number}", question)
        for number, question in enumerate(questions)
    ]
