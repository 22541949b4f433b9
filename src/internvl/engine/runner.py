"""From tasks to scores: ids and vision tokens in, one forward pass, hidden states and logits out.

Knows the model and the pages' tensors; no scheduling, no sampling.
Shape letters: T packed tokens, D text width, R rows, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from internvl.engine.job import Task
from internvl.engine.paged_cache import PagedCache, Part
from internvl.models.fused_step import step_in_places
from internvl.models.vlm import VLM

ROWS_OF_REPORTS = 64
"""Prompt tokens whose scores are in memory at a time: 40 MB for a vocabulary of 150,000."""


class Runner:
    """Runs the language model over pages."""

    def __init__(self, vlm: VLM, cache: PagedCache) -> None:
        self.llm, self.cache = vlm.eval().llm, cache
        self.seconds = 0.0

    @torch.inference_mode()
    def run(self, tasks: Sequence[Task]) -> list[Tensor]:
        """Final hidden states (T, D) of every task's positions."""
        start = time.perf_counter()
        states = self._step([task for task in tasks if task.work.size == 1])
        rest = [task for task in tasks if id(task) not in states]
        if rest:
            attend = self.cache.step([_part(task) for task in rest])
            hidden_TD = self.llm(self._embed(rest), attend.pos_T, attend)
            parts = hidden_TD.split([task.work.size for task in rest])
            states |= {id(task): part_TD for task, part_TD in zip(rest, parts, strict=True)}
        self.seconds += time.perf_counter() - start
        return [states[id(task)] for task in tasks]

    def _step(self, tasks: Sequence[Task]) -> dict[int, Tensor]:
        """Hidden states (1, D), by identity, of tasks of one token each in one kernel call: none where it
        cannot serve."""
        if not tasks:
            return {}
        places = self.cache.places([_part(task) for task in tasks])
        state_BD = step_in_places(self.llm, self._embed(tasks), self.cache, *places)
        rows = () if state_BD is None else state_BD.split(1)
        return {id(task): row_1D for task, row_1D in zip(tasks, rows, strict=False)}

    @torch.inference_mode()
    def logits(self, choosing: Sequence[tuple[Task, Tensor]]) -> list[Tensor]:
        """Scores (R, V) of the positions of each task that choose a token, from its hidden states (T, D)."""
        start = time.perf_counter()
        rows = [states_TD[-task.num_scores :] for task, states_TD in choosing]
        logits_RV = self.llm.logits(torch.cat(rows))
        self.seconds += time.perf_counter() - start
        return list(logits_RV.split([len(states_RD) for states_RD in rows]))

    @torch.inference_mode()
    def prompt_scores(self, hidden_TD: Tensor) -> Iterator[Tensor]:
        """Scores (V,) after each position, a few positions at a time in memory."""
        for part_TD in hidden_TD.split(ROWS_OF_REPORTS):
            yield from self.llm.logits(part_TD)

    def _embed(self, tasks: Sequence[Task]) -> Tensor:
        ids = [id for task in tasks for id in task.ids]
        x_TD: Tensor = self.llm.embed(torch.tensor(ids, device=self.cache.device))
        first = 0
        for task in tasks:
            for fill in task.job.fills(task.work.start, task.work.start + task.work.size):
                begin = first + fill.first
                x_TD[begin : begin + len(fill.tokens_SD)] = fill.tokens_SD.to(x_TD.dtype)
            first += task.work.size
        return x_TD


def _part(task: Task) -> Part:
    return Part(
        pages=task.work.row.pages,
        start=task.work.start,
        count=task.work.size,
        prompt_length=len(task.job.request.ids),
    )
