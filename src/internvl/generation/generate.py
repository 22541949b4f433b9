"""Answers from prompts: one token per sequence and step, each sequence until it ends.

Prompts are decoder inputs (embeddings), so pictures and text look the same here. Text appears only through
a `decode` callable for stop strings and streaming. Sequences of a batch do not influence each other.
Shape letters: T tokens, D width, B sequences, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from internvl.generation.answer import Answer
from internvl.generation.beam import beam_search
from internvl.generation.prefill import PREFILL_CHUNK, decode_step, make_cache, prefill
from internvl.generation.prompt import Prompt, check_prompt
from internvl.generation.result import Generation, Token
from internvl.generation.sampler import choose_batch
from internvl.generation.stream import Decode
from internvl.models.attention import KVCache
from internvl.models.decoder import Decoder


class Batch:
    """Prompts that are continued together. All checks are made when it is made; `step` computes.

    Nothing outlives the object, so it may be dropped after any step, interrupted or not.
    """

    def __init__(
        self,
        llm: Decoder,
        prompts: Sequence[Prompt],
        *,
        decode: Decode | None = None,
        prefill_chunk: int = PREFILL_CHUNK,
    ) -> None:
        for prompt in prompts:
            check_prompt(prompt, llm.config)
        self.llm, self.prefill_chunk = llm, prefill_chunk
        self.prompts = list(prompts)
        self.answers = [Answer(prompt.sampling, prompt.seen_ids, decode) for prompt in prompts]
        self.cache: KVCache | None = None

    @property
    def live(self) -> list[int]:
        """Numbers of the sequences that have not ended."""
        return [row for row, answer in enumerate(self.answers) if answer.finish_reason is None]

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """One new token for every live sequence; the first call also runs the prompts."""
        rows = self.live
        samplers = [self.answers[row].sampler for row in rows]
        choices = choose_batch(samplers, self._logits(rows))
        return [self.answers[row].accept(row, *choice) for row, choice in zip(rows, choices, strict=True)]

    def cancel(self) -> None:
        """Ends every live sequence where it is."""
        for answer in self.answers:
            answer.cancel()

    def _logits(self, rows: list[int]) -> Tensor:
        if self.cache is None:
            longest = max(answer.sampling.max_new_tokens for answer in self.answers)
            self.cache = make_cache(self.prompts, self.llm.config, len(self.prompts), longest)
            return prefill(self.llm, self.cache, self.prompts, self.prefill_chunk)
        return decode_step(self.llm, self.cache, rows, [self.answers[row].ids[-1] for row in rows])


def stream(
    llm: Decoder,
    prompts: Sequence[Prompt],
    *,
    decode: Decode | None = None,
    prefill_chunk: int = PREFILL_CHUNK,
) -> Iterator[Token]:
    """Tokens of all prompts as they come, step by step. Errors as `generate`, raised by the call itself.

    Closing the iterator ends the work; the last token of a sequence says why it ended.
    """
    return _tokens(Batch(llm, prompts, decode=decode, prefill_chunk=prefill_chunk))


def _tokens(batch: Batch) -> Iterator[Token]:
    while batch.live:
        yield from batch.step()


def generate(
    llm: Decoder,
    prompts: Sequence[Prompt],
    *,
    decode: Decode | None = None,
    is_cancelled: Callable[[], bool] | None = None,
    prefill_chunk: int = PREFILL_CHUNK,
) -> list[Generation]:
    """Continues the prompts together; each answer equals the one the prompt gets alone.

    Prompts with `num_beams` above 1 are searched one after the other. `decode` gives the answers text
    and is needed for stop strings. `is_cancelled` is asked between steps; what is there then is returned.
    Raises, before anything is computed, ContextOverflowError if a prompt and its `max_new_tokens` exceed
    the model's positions, InputError for other prompts that cannot be continued.
    """
    for prompt in prompts:
        check_prompt(prompt, llm.config)
    together = [prompt for prompt in prompts if prompt.sampling.num_beams == 1]
    batch = Batch(llm, together, decode=decode, prefill_chunk=prefill_chunk)
    while batch.live:
        batch.step()
        if is_cancelled and is_cancelled():
            batch.cancel()
    singles = iter(answer.result() for answer in batch.answers)
    return [
        next(singles)
        if prompt.sampling.num_beams == 1
        else beam_search(llm, prompt, decode=decode, is_cancelled=is_cancelled, prefill_chunk=prefill_chunk)
        for prompt in prompts
    ]
