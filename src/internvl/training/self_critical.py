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
from internvl.data.example import Branch, Example
from internvl.data.examples import Examples
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
    """One example of a batch: its prompt, where pictures go, and the ids of the answers on record."""

    ids: tuple[int, ...]
    slots: tuple[int, ...]
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
        hidden_AD = trained_states(model, answers, vision_SD)
        weights_A = advantages_B[answers.branches_A]
        total = cross_entropy(hidden_AD, model.llm.head, answers.targets_A, weights_A).total
        weight = float(len(answers.targets_A))
        return Loss(total=total, weight=weight, metrics={"reward": float(rewards_B.mean()) * weight})

    def _draw(self, model: VLM, asked: Sequence[Asked], vision_SD: Tensor) -> list[list[int]]:
        device, prompts = vision_SD.device, []
        counts = [len(one.slots) for one in asked]
        for one, part_SD in zip(asked, vision_SD.split(counts), strict=True):
            ids_T, slots_S = torch.tensor(one.ids, device=device), torch.tensor(one.slots, device=device)
            prompts.append(model.embed(ids_T, slots_S.long(), part_SD).detach())
        return draw_answers(
            model.llm,
            prompts,
            self.spec.samples,
            max_new_tokens=self.spec.max_new_tokens,
            stop_ids=self.stop_ids,
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
                key=key,
                prefix=one.ids,
                branches=tuple(
                    Branch(tuple(ids), (True,) * len(ids)) for ids in drawn[row * count : (row + 1) * count]
                ),
                slots=one.slots,
            )
            for row, (key, one) in enumerate(zip(batch.keys, asked, strict=True))
        ]
        return pack(examples, batch.tiles_N3HW.shape[-1]).to(batch.ids_T.device)


def advantages(rewards_B: Tensor, count: int) -> Tensor:
    """Each score less the mean of its `count - 1` siblings'."""
    rewards_GN = rewards_B.view(-1, count)
    siblings_GN = (rewards_GN.sum(1, keepdim=True) - rewards_GN) / (count - 1)
    return (rewards_GN - siblings_GN).flatten()


def read_batch(batch: Batch) -> list[Asked]:
    """The examples of a batch again: prompts and the trained tokens of each branch."""
    targets, branches = batch.targets_A.tolist(), batch.branches_A.tolist()
    answers: list[list[int]] = [[] for _ in range(batch.num_branches)]
    for target, branch in zip(targets, branches, strict=True):
        answers[branch].append(target)
    ids, slots, found = batch.ids_T.tolist(), batch.slots_S.tolist(), []
    start = first = 0
    for common, lengths in batch.groups:
        end, last = start + common, first + len(lengths)
        inside = tuple(slot - start for slot in slots if start <= slot < end)
        found.append(Asked(tuple(ids[start:end]), inside, tuple(map(tuple, answers[first:last]))))
        start, first = end + sum(lengths), last
    return found
