"""What generation hands back: tokens while they come, and whole answers.

Plain values; knows no torch and no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled"]
"""A stop id or stop string; the token limit; the caller. "cancelled" keeps what was there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """Natural log-probability of a chosen id, and of the best ids at its place, best first."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One new token of sequence number `sequence`.

    `text` is what became certain by it: possibly empty, possibly more than this token's own. The pieces of a
    sequence joined are its whole text. `finish_reason` is set on the last token.
    """

    sequence: int
    id: int
    text: str = ""
    logprob: TokenLogprob | None = None
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A whole answer. `ids` include the stop id that ended it; `text` does not, nor a stop string.

    `score` is set by beam search: summed log-probability divided by length to the power `length_penalty`.
    """

    ids: tuple[int, ...]
    finish_reason: FinishReason
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    score: float | None = None
