"""What an engine is asked, and what it gives back, piece by piece.

Plain values with token ids and tiles; knows no text beyond the answers' own, no model and no scheduling.
Shape letters: N tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from internvl.engine.constraint import Constraint
from internvl.errors import InputError, InternVLError
from internvl.generation.result import FinishReason, Token, TokenLogprob
from internvl.generation.sampling import Sampling

EndReason = FinishReason | Literal["deadline", "error"]
"""As in `generation.result`; or the request's time was over and something of it is written, or its answer
could not go on."""

MAX_ANSWERS = 128


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EngineImage:
    """One picture: its tiles (N, 3, H, W), and a key that equal tiles of equal order have, and no others."""

    key: bytes
    tiles_N3HW: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EngineRequest:
    """One prompt to be continued `n` times.

    `key` is the caller's, and unique among the requests that have not ended. `images` come in the order of
    their slots. `slots` are the positions that vision tokens fill; None: wherever the slot id stands. Smaller
    `priority` goes first. Clients of equal priority share the engine evenly. `deadline` is in seconds of the
    engine's clock, `time.monotonic()`, which the processes of a machine share: answers end there with what is
    written, and with an error where nothing is. Answer i > 0 is drawn with `seed + i`; beams give
    the n best, all at the end. `prompt_logprobs=k` reports every prompt token
    and the k best at its place. `adapter` is one of the engine's names. `constraint` is a form that the
    answers have; log-probabilities are those without it.
    """

    key: str
    ids: tuple[int, ...]
    sampling: Sampling
    images: tuple[EngineImage, ...] = ()
    slots: tuple[int, ...] | None = None
    n: int = 1
    priority: int = 0
    client: str = ""
    deadline: float | None = None
    adapter: str | None = None
    constraint: Constraint | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.n <= MAX_ANSWERS:
            raise InputError(f"n must be from 1 to {MAX_ANSWERS}, got {self.n}")
        if self.prompt_logprobs is not None and self.prompt_logprobs < 0:
            raise InputError(f"prompt_logprobs must be None or at least 0, got {self.prompt_logprobs}")
        if self.constraint is not None and self.sampling.min_new_tokens:
            raise InputError("a form says itself when an answer may end: leave min_new_tokens at 0")
        if self.sampling.num_beams > 1:
            self._check_beams()

    def _check_beams(self) -> None:
        if self.constraint is not None or self.prompt_logprobs is not None:
            raise InputError("a beam search takes neither a constraint nor prompt_logprobs: use num_beams=1")
        if self.n > self.sampling.num_beams:
            raise InputError(f"n={self.n} answers of num_beams={self.sampling.num_beams}: raise num_beams")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineUsage:
    """What a whole request took: the prompt once, the tokens of all answers. `cached_tokens` of the prompt
    were there already; `image_tokens` of it fill slots."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    image_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """One piece of answer `index` of request `key`.

    `text` is what became certain by it; an answer's pieces joined are its whole text. The last piece of
    each answer has `finish_reason`, that of the whole request `usage` too; it may have no token. `error` is
    what happened when the reason is "error". `prompt_logprobs`, if asked for, come with the first piece of
    answer 0: one for each prompt token, None for the first.
    """

    key: str
    index: int
    token: Token | None = None
    text: str = ""
    finish_reason: EndReason | None = None
    usage: EngineUsage | None = None
    error: InternVLError | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
