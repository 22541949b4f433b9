"""One answer in the making: what the scheduler's row stands for.

Holds ids, the answer's text so far, and the vision tokens its prompt waits for. Knows no pages and no model.
Shape letters: S vision tokens of one picture, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from internvl.engine.constraint import Form
from internvl.engine.drafts import PromptLookup
from internvl.engine.page_keys import KeyChain, Span
from internvl.engine.request import Delta, EndReason, EngineImage, EngineRequest, EngineUsage
from internvl.engine.scheduler import Row, Work
from internvl.engine.vision_encoder import Wanted
from internvl.errors import InternVLError
from internvl.generation.answer import Answer
from internvl.generation.result import Token, TokenLogprob
from internvl.generation.sampling import Sampling
from internvl.generation.stream import Decode


class Fill(NamedTuple):
    """Vision tokens for the positions of a piece of prompt from its row `first` on."""

    first: int
    tokens_SD: Tensor


@dataclass(slots=True)
class Tally:
    """What the answers of one request have in common: how many go on, and what they took so far."""

    num_open: int
    new_tokens: int = 0
    cached_tokens: int = 0


class Job:
    """Answer `index` of a request."""

    def __init__(
        self,
        request: EngineRequest,
        index: int,
        row: Row,
        chain: KeyChain,
        *,
        tally: Tally,
        images: Sequence[EngineImage],
        tower: str,
        seen_ids: Sequence[int],
        decode: Decode | None,
        form: Form | None = None,
        num_drafts: int = 0,
    ) -> None:
        """`images` are the request's, with the keys they have in `tower`. `form` is what the answer must
        follow; `num_drafts` tokens are guessed ahead."""
        self.request, self.index, self.row, self.chain = request, index, row, chain
        self.tally = tally
        self.ids = list(request.ids)
        self.answer = Answer(seeded(request.sampling, index), seen_ids, decode)
        self.vision: dict[bytes, Tensor] = {}
        self.prompt_logprobs: list[TokenLogprob | None] = [None]
        self.form, self.num_drafts = form, num_drafts
        self.lookup = PromptLookup()
        self.drafts: list[int] = []
        if num_drafts:
            self.lookup.extend(request.ids)
        self.images = {image.key: Wanted(image, tower) for image in images}

    @property
    def spans(self) -> Sequence[Span]:
        return self.chain.spans

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self.request.prompt_logprobs is not None and self.index == 0

    def missing_images(self) -> list[Wanted]:
        """Pictures in what is still to be run whose vision tokens are not here, first ones first."""
        computed = self.row.num_computed
        wanted = [span.key for span in self.spans if span.end > computed and span.key not in self.vision]
        return [self.images[key] for key in dict.fromkeys(wanted)]

    def update_ready(self) -> None:
        """Tells the row how far it can run."""
        computed = self.row.num_computed
        starts = (s.start for s in self.spans if s.end > computed and s.key not in self.vision)
        self.row.num_ready = min(starts, default=self.row.num_tokens)

    def fills(self, start: int, end: int) -> list[Fill]:
        """The vision tokens of positions `start` to `end`."""
        found = []
        for span in self.spans:
            first, last = max(span.start, start), min(span.end, end)
            if first < last:
                tokens_SD = self.vision[span.key][first - span.start : last - span.start]
                found.append(Fill(first - start, tokens_SD))
        return found

    def accept(self, new_id: int, logprob: TokenLogprob | None) -> Token:
        """Books the id that the answer's sampler has just chosen."""
        self.ids.append(new_id)
        self.chain.extend([new_id])
        if self.num_drafts:
            self.lookup.extend([new_id])
        if self.form:
            self.form.accept(new_id)
        return self.answer.accept(self.index, new_id, logprob)

    def guess(self) -> None:
        """Makes guesses for the next step, if the answer is being written and guesses are wanted."""
        self.drafts = []
        if self.num_drafts and self.row.num_pending == 1 and self.answer.ids:
            self.drafts = self.lookup.propose(self.num_drafts)
            if self.form:
                self.drafts = (self.form.forced() or self.form.filter(self.drafts))[: self.num_drafts]
        self.row.num_drafts = len(self.drafts)

    def choose(self, logits_V: Tensor) -> tuple[int, TokenLogprob | None]:
        """The next id for the model's scores (V,)."""
        allowed_V = self.form.allowed(len(logits_V)) if self.form else None
        return self.answer.sampler.choose(logits_V, allowed_V)

    def forget_vision(self) -> None:
        """Once the whole prompt is computed its vision tokens are not needed, unless it is preempted."""
        if self.row.num_computed >= len(self.request.ids):
            self.vision = {}

    def delta(self, token: Token) -> Delta:
        """The piece of answer that a token gives; the last one with its usage."""
        reason = token.finish_reason
        return Delta(
            key=self.request.key,
            index=self.index,
            token=token,
            text=token.text,
            finish_reason=reason,
            usage=self._book_end() if reason else None,
            prompt_logprobs=self._take_prompt_logprobs(),
        )

    def end(self, reason: EndReason, error: InternVLError | None = None) -> Delta:
        """Ends the answer where it is."""
        self.answer.cancel()
        return Delta(
            key=self.request.key,
            index=self.index,
            text=self.answer.pieces[-1],
            finish_reason=reason,
            usage=self._book_end(),
            error=error,
        )

    def _book_end(self) -> EngineUsage | None:
        """What the whole request took, if this answer is the last one to end."""
        tally = self.tally
        tally.num_open -= 1
        tally.new_tokens += len(self.answer.ids)
        if self.index == 0:  # the others find what this one has computed
            tally.cached_tokens = self.row.num_cached or 0
        if tally.num_open:
            return None
        return EngineUsage(
            prompt_tokens=len(self.request.ids),
            completion_tokens=tally.new_tokens,
            cached_tokens=tally.cached_tokens,
            image_tokens=sum(span.end - span.start for span in self.spans),
        )

    def _take_prompt_logprobs(self) -> tuple[TokenLogprob | None, ...] | None:
        is_first = self.wants_prompt_logprobs and len(self.answer.ids) == 1
        return tuple(self.prompt_logprobs) if is_first else None


class Task(NamedTuple):
    """A piece of work with its ids: those known, and guesses behind them."""

    job: Job
    work: Work
    ids: list[int]

    @property
    def num_scores(self) -> int:
        """How many positions at its end choose a token: none while a prompt goes on."""
        return 1 + self.work.num_drafts if self.work.is_last else 0


def seeded(sampling: Sampling, index: int) -> Sampling:
    """The settings of answer `index`: each has random numbers of its own."""
    if index == 0 or sampling.seed is None:
        return sampling
    return replace(sampling, seed=(sampling.seed + index) % 2**63)
