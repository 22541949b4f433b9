"""Beam search of one prompt, in the form the released models were evaluated with.

The same beams and scores as transformers' beam search without sampling: twice as many candidates as
beams (more with several stop ids), finished beams kept apart, scores edited after the log-softmax.
Shape letters: T tokens, D width, B beams, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from internvl.generation import scores
from internvl.generation.prefill import PREFILL_CHUNK, decode_step, make_cache, run_passes
from internvl.generation.prompt import Prompt, check_prompt
from internvl.generation.result import FinishReason, Generation
from internvl.generation.sampler import check_finite
from internvl.generation.sampling import Sampling
from internvl.generation.stream import Decode
from internvl.models.decoder import Decoder


@dataclass(frozen=True, slots=True)
class Finished:
    """A beam that ended: normalised score, new ids, and why."""

    score: float
    ids: tuple[int, ...]
    reason: FinishReason


class Finals:
    """The `num_beams` best finished beams."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.beams: list[Finished] = []

    def add(self, total: float, ids: Sequence[int], reason: FinishReason) -> None:
        """Takes a beam with summed log-probability `total` unless `num_beams` better ones are there."""
        beam = Finished(self._normalise(total, len(ids)), tuple(ids), reason)
        if len(self.beams) == self.sampling.num_beams:
            worst = min(self.beams, key=lambda beam: beam.score)
            if beam.score <= worst.score:
                return
            self.beams.remove(worst)
        self.beams.append(beam)

    def is_done(self, best_total: float, length: int) -> bool:
        """Whether no running beam can come in any more, judged at its present `length`."""
        if len(self.beams) < self.sampling.num_beams:
            return False
        worst = min(beam.score for beam in self.beams)
        return self.sampling.early_stopping or worst >= self._normalise(best_total, length)

    def best(self, count: int) -> list[Finished]:
        """Best first; among equal scores the one that came last."""
        return sorted(self.beams, key=lambda beam: beam.score)[::-1][:count]

    def _normalise(self, total: float, length: int) -> float:
        return float(total / length**self.sampling.length_penalty)


class Running:
    """The beams that go on: new ids and summed log-probability of each."""

    def __init__(self, sampling: Sampling, seen_ids: Sequence[int]) -> None:
        self.sampling, self.seen_ids = sampling, seen_ids
        self.ids: list[list[int]] = [[]]
        self.totals: list[float] = [0.0]
        self.best_total = 0.0  # of the last step's candidates, ended or not

    def advance(self, logits_BV: Tensor, finals: Finals) -> list[int]:
        """One step of all beams; ended ones go to `finals`. Returns which beam each new one continues."""
        sampling, old_ids = self.sampling, self.ids
        candidates = self._candidates(logits_BV)
        self.ids, self.totals, self.best_total, parents = [], [], candidates[0][0], []
        for rank, (total, place) in enumerate(candidates):
            parent, new_id = divmod(place, logits_BV.shape[-1])
            ids = [*old_ids[parent], new_id]
            if new_id not in sampling.stop_ids:
                self.ids.append(ids)
                self.totals.append(total)
                parents.append(parent)
            elif rank < sampling.num_beams:
                finals.add(total, ids, "stop")
            if len(parents) == sampling.num_beams:
                break
        return parents

    def _candidates(self, logits_BV: Tensor) -> list[tuple[float, int]]:
        """The best continuations: summed log-probability and place in the flattened (B, V), best first."""
        scores_BV = logits_BV.float().log_softmax(-1)
        if self.sampling.edits_scores:
            rows = zip(scores_BV, self.ids, strict=True)
            scores_BV = torch.stack(
                [scores.edit(row_V, self.sampling, self.seen_ids, ids) for row_V, ids in rows]
            )
        totals_B1 = torch.tensor(self.totals, device=scores_BV.device)[:, None]
        totals = (scores_BV + totals_B1).flatten()
        count = max(2, 1 + len(self.sampling.stop_ids)) * self.sampling.num_beams
        values, places = torch.topk(totals, min(count, len(totals)))
        check_finite(float(values[0]))
        return list(zip(values.tolist(), places.tolist(), strict=True))


class BeamSearch:
    """The search of one prompt in steps: passes over the prompt, then one token of all beams at a time.

    Nothing outlives the object, so it may be dropped after any step. Errors as `generation.generate`.
    """

    def __init__(self, llm: Decoder, prompt: Prompt, prefill_chunk: int = PREFILL_CHUNK) -> None:
        check_prompt(prompt, llm.config)
        self.llm, self.prompt, self.sampling = llm, prompt, prompt.sampling
        self.finals, self.running = Finals(self.sampling), Running(self.sampling, prompt.seen_ids)
        self.is_done = False
        self._cache = make_cache([prompt], llm.config, self.sampling.num_beams, self.sampling.max_new_tokens)
        self._lasts: dict[int, Tensor] = {}
        self._passes = run_passes(llm, self._cache, [prompt], prefill_chunk, self._lasts)
        self._logits_BV: Tensor | None = None
        self._length = 0
        self._num_filled = 1  # rows of the cache that hold the prompt; beams can only become more

    @torch.inference_mode()
    def step(self) -> None:
        """One pass over the prompt, or one token."""
        if self._logits_BV is not None:
            self._advance(self._logits_BV)
        elif next(self._passes, "all") == "all":
            self._logits_BV = self.llm.logits(self._lasts[0][None])

    def cancel(self) -> None:
        """Ends the search where it is; the beams so far count."""
        if not self.is_done:
            self._end("cancelled")

    def _advance(self, logits_BV: Tensor) -> None:
        parents = self.running.advance(logits_BV, self.finals)
        self._length += 1
        if self.finals.is_done(self.running.best_total, self._length):
            self.is_done = True
        elif self._length == self.sampling.max_new_tokens:
            self._end("length")
        else:
            self._reorder(parents)
            new_ids = [ids[-1] for ids in self.running.ids]
            self._logits_BV = decode_step(self.llm, self._cache, range(len(parents)), new_ids)

    def _reorder(self, parents: list[int]) -> None:
        if parents != list(range(len(parents))):
            has_prompt = len(parents) <= self._num_filled
            self._cache.reorder(parents, since=len(self.prompt.x_TD) if has_prompt else 0)
            self._num_filled = max(self._num_filled, len(parents))

    def _end(self, reason: FinishReason) -> None:
        for ids, total in zip(self.running.ids, self.running.totals, strict=True):
            if ids:
                self.finals.add(total, ids, reason)
        self.is_done = True


def beam_search(
    llm: Decoder,
    prompt: Prompt,
    *,
    decode: Decode | None = None,
    is_cancelled: Callable[[], bool] | None = None,
    prefill_chunk: int = PREFILL_CHUNK,
) -> Generation:
    """The best continuation of one prompt, with its score.

    Cancelled, it is the best beam so far. Errors as `generation.generate`.
    """
    (beam,) = search(llm, prompt, is_cancelled=is_cancelled, prefill_chunk=prefill_chunk).best(1)
    shown = beam.ids[:-1] if beam.reason == "stop" else beam.ids
    text = decode(shown) if decode else ""
    return Generation(ids=beam.ids, finish_reason=beam.reason, text=text, score=beam.score)


def search(
    llm: Decoder,
    prompt: Prompt,
    *,
    is_cancelled: Callable[[], bool] | None = None,
    prefill_chunk: int = PREFILL_CHUNK,
) -> Finals:
    """The `num_beams` best continuations. `is_cancelled` is asked after each token."""
    going = BeamSearch(llm, prompt, prefill_chunk)
    while not going.is_done:
        going.step()
        if going.running.ids != [[]] and is_cancelled and is_cancelled():
            going.cancel()
    return going.finals
