"""Learning from one's own answers: what scores better than its siblings becomes more likely.

Self-critical sequence training (Rennie et al., arXiv 1612.00563) with the mean of the other samples as the
baseline (Luo, arXiv 2003.09971). The score is CIDEr-D with document frequencies of all records of the run.
Shape letters: B answers, A their tokens, S slots, T tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from internvl.data.bad_samples import BROKEN
from internvl.data.batch import Batch, pack
from internvl.data.chat_examples import Examples
from internvl.data.example import Branch, Example
from internvl.data.meta import DataSet
from internvl.evaluation.scores import CiderD
from internvl.generation.many import draw_answers
from internvl.models.vlm import VLM
from internvl.processing.processor import Processor
from internvl.training.cross_entropy import cross_entropy
from internvl.training.forward import trained_states, vision_tokens
from internvl.training.loss import Loss
from internvl.training.objective_spec import SelfCritical
from internvl.training.objectives import next_token


class Asked(NamedTuple):
    """One question of a batch: its record, its prompt, where pictures go and which of the batch's vision
    tokens those are, and the ids of the answers on record."""

    key: str
    ids: tuple[int, ...]
    slots: tuple[int, ...]
    seen: tuple[int, ...]
    references: tuple[tuple[int, ...], ...]


def references_of(datasets: Iterable[DataSet], examples: Examples) -> Iterator[tuple[str, ...]]:
    """The answers on record to every question of the data; bad samples are left to the run."""
    for dataset in datasets:
        for row in range(dataset.size):
            try:
                asked = examples.ask(dataset.source.row(row), dataset)
            except BROKEN:
                continue
            yield from (question.references for question in asked)


def learn_from_answers(
    spec: SelfCritical, processor: Processor, datasets: Iterable[DataSet], examples: Examples
) -> SelfCriticalObjective:
    """The objective of a run over `datasets`. Raises InputError where they hold no answer."""
    return SelfCriticalObjective(
        spec,
        text=processor.text,
        stop_ids=processor.stop_ids,
        measure=CiderD(list(references_of(datasets, examples))),
    )


class SelfCriticalObjective:
    """The weight of a loss is its number of drawn tokens; `reward` is the mean score of the answers.

    `text` reads ids as an answer, which ends at one of `stop_ids`; `measure` scores it. Held-out records,
    which are measured without gradients, have the next-token loss.
    """

    def __init__(
        self,
        spec: SelfCritical,
        *,
        text: Callable[[Sequence[int]], str],
        stop_ids: Sequence[int],
        measure: CiderD,
    ) -> None:
        self.spec, self.text, self.stop_ids, self.measure = spec, text, tuple(stop_ids), measure

    def __call__(self, model: VLM, batch: Batch) -> Loss:
        if not torch.is_grad_enabled():
            return next_token(model, batch)
        asked, vision_SD = read_batch(batch), vision_tokens(model, batch)
        drawn = self._draw(model, asked, vision_SD.detach())
        rewards_B = self._rewards(asked, drawn).to(vision_SD.device)
        advantages_B = advantages(rewards_B, self.spec.samples)
        answers = self._answers(batch, asked, drawn)
        seen_S = torch.tensor([row for one in asked for row in one.seen], device=vision_SD.device)
        hidden_AD = trained_states(model, answers, vision_SD.index_select(0, seen_S.long()))
        weights_A = advantages_B[answers.branches_A]
        # What learns is the distribution that was drawn from; the head is linear, so states may be divided.
        tempered_AD = hidden_AD / self.spec.temperature
        total = cross_entropy(tempered_AD, model.llm.head, answers.targets_A, weights_A).total
        weight = float(len(answers.targets_A))
        return Loss(total=total, weight=weight, metrics={"reward": float(rewards_B.mean()) * weight})

    def _draw(self, model: VLM, asked: Sequence[Asked], vision_SD: Tensor) -> list[list[int]]:
        device, prompts = vision_SD.device, []
        for one in asked:
            ids_T = torch.tensor(one.ids, device=device)
            slots_S, seen_S = torch.tensor((one.slots, one.seen), dtype=torch.long, device=device)
            prompts.append(model.embed(ids_T, slots_S, vision_SD.index_select(0, seen_S)).detach())
        return draw_answers(
            model.llm,
            prompts,
            self.spec.samples,
            max_new_tokens=self.spec.max_new_tokens,
            stop_ids=self.stop_ids,
            temperature=self.spec.temperature,
        )

    def _rewards(self, asked: Sequence[Asked], drawn: Sequence[Sequence[int]]) -> Tensor:
        references = [[self.text(ids) for ids in one.references] for one in asked]
        return torch.tensor(
            [
                self.measure(self.text(ids), references[row // self.spec.samples])
                for row, ids in enumerate(drawn)
            ]
        )

    def _answers(self, batch: Batch, asked: Sequence[Asked], drawn: Sequence[Sequence[int]]) -> Batch:
        """The drawn answers as branches of their prompts; pictures stay with the caller."""
        count = self.spec.samples
        examples = [
            Example(
                key=one.key,
                prefix=one.ids,
                branches=tuple(
                    Branch(tuple(ids), (True,) * len(ids)) for ids in drawn[row * count : (row + 1) * count]
                ),
                slots=one.slots,
            )
            for row, one in enumerate(asked)
        ]
        return pack(examples, batch.tiles_N3HW.shape[-1]).to(batch.ids_T.device)


def advantages(rewards_B: Tensor, count: int) -> Tensor:
    """Each score less the mean of its `count - 1` siblings'."""
    rewards_GN = rewards_B.view(-1, count)
    siblings_GN = (rewards_GN.sum(1, keepdim=True) - rewards_GN) / (count - 1)
    return (rewards_GN - siblings_GN).flatten()


def read_batch(batch: Batch) -> list[Asked]:
    """The questions of a batch: every answer of a conversation is asked for after the rounds on record before
    it, and answers to one question are together, as `data.questions` has them."""
    ids, answers = batch.ids_T.tolist(), iter(_answers_on_record(batch))
    row_of = {slot: row for row, slot in enumerate(batch.slots_S.tolist())}
    asked: list[Asked] = []
    start = 0
    for key, (common, lengths) in zip(batch.keys, batch.groups, strict=True):
        found: dict[tuple[int, ...], Asked] = {}
        first = start + common
        for length in lengths:
            for place, answer in next(answers):
                before = (*range(start, start + common), *range(first, first + place))
                said = tuple(ids[row] for row in before)
                filled = [(slot, row_of[row]) for slot, row in enumerate(before) if row in row_of]
                slots, seen = zip(*filled, strict=True) if filled else ((), ())
                one = found.get(said, Asked(key, said, slots, seen, ()))
                found[said] = one._replace(references=(*one.references, answer))
            first += length
        asked += found.values()
        start = first
    return asked


def _answers_on_record(batch: Batch) -> list[list[tuple[int, tuple[int, ...]]]]:
    """Of each branch its runs of trained tokens: where they begin in it, and their ids."""
    starts, first = [], 0
    for common, lengths in batch.groups:
        starts += [first + common + sum(lengths[:number]) for number in range(len(lengths))]
        first += common + sum(lengths)
    found: list[list[tuple[int, tuple[int, ...]]]] = [[] for _ in starts]
    columns = (batch.sources_A, batch.targets_A, batch.branches_A)
    for source, target, branch in zip(*(column.tolist() for column in columns), strict=True):
        place = max(0, source + 1 - starts[branch])  # the first token is predicted by the prefix
        begun, ids = found[branch][-1] if found[branch] else (-1, ())
        if begun + len(ids) == place:
            found[branch][-1] = (begun, (*ids, target))
        else:
            found[branch].append((place, (target,)))
    return found
