"""One growing answer: its sampler, its text, and why it ended.

Knows ids, scores reports and text pieces; no model, no cache.
"""

from __future__ import annotations

from collections.abc import Sequence

from internvl.errors import InputError
from internvl.generation.result import FinishReason, Generation, Token, TokenLogprob
from internvl.generation.sampler import Sampler
from internvl.generation.sampling import Sampling
from internvl.generation.stopping import find_reason
from internvl.generation.stream import Decode, TextStream


class Answer:
    """Takes chosen tokens until one ends it. `decode` may be None when nobody wants text."""

    def __init__(self, sampling: Sampling, seen_ids: Sequence[int], decode: Decode | None) -> None:
        if sampling.num_beams > 1:
            raise InputError(
                f"num_beams={sampling.num_beams}: beam search knows its answer only at the end, so call "
                "generate, or use num_beams=1 to stream"
            )
        if sampling.stop and decode is None:
            raise InputError("stop strings need the tokenizer's decode: pass decode=")
        self.sampling = sampling
        self.sampler = Sampler(sampling, seen_ids)
        self.stream = TextStream(decode, sampling.stop)
        self.pieces: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason: FinishReason | None = None

    @property
    def ids(self) -> list[int]:
        return self.sampler.ids

    def accept(self, sequence: int, new_id: int, logprob: TokenLogprob | None) -> Token:
        """Books the id that the sampler has just chosen; a stop id adds no text."""
        reason = find_reason(self.sampling, len(self.ids), new_id)
        text = "" if reason == "stop" else self.stream.push(new_id)
        if reason or self.stream.is_stopped:
            text += self.stream.finish()
        self.finish_reason = "stop" if self.stream.is_stopped else reason
        self.pieces.append(text)
        if logprob:
            self.logprobs.append(logprob)
        return Token(
            sequence=sequence, id=new_id, text=text, logprob=logprob, finish_reason=self.finish_reason
        )

    def cancel(self) -> None:
        """Ends the answer where it is, if it has not ended."""
        if self.finish_reason is None:
            self.finish_reason = "cancelled"
            self.pieces.append(self.stream.finish())

    def result(self) -> Generation:
        """The answer as a value; only for one that has ended."""
        assert self.finish_reason is not None
        text, logprobs = "".join(self.pieces), tuple(self.logprobs)
        return Generation(ids=tuple(self.ids), finish_reason=self.finish_reason, text=text, logprobs=logprobs)
