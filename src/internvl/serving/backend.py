"""What the server asks of whatever computes answers.

Token ids, tiles and settings go in, tokens come out one by one. Knows no HTTP, no messages and no files.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from internvl.errors import InternVLError
from internvl.generation.result import FinishReason, Token
from internvl.generation.sampling import Sampling


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EngineImage:
    """Tiles of one picture; equal keys mean equal tiles."""

    key: bytes
    tiles_N3HW: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EngineRequest:
    """`ids` hold an `<IMG_CONTEXT>` for every vision token of `images`, in order.

    `n` answers are drawn. Of waiting requests the one of the lowest `priority` number runs first.
    """

    key: str
    ids: tuple[int, ...]
    images: tuple[EngineImage, ...] = ()
    sampling: Sampling
    n: int = 1
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineUsage:
    """Tokens of a whole request. `prompt_tokens` include the `image_tokens` and the `cached_tokens`."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    image_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """One step of answer number `index`; the texts of its steps joined are the whole text.

    `finish_reason` is set on the last one of each answer, which may have no token. `usage` comes with the
    last one of the request. After an `error` nothing follows.
    """

    key: str
    index: int = 0
    token: Token | None = None
    text: str = ""
    finish_reason: FinishReason | None = None
    usage: EngineUsage | None = None
    error: InternVLError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """What runs now, and what was done since the start."""

    num_running: int
    num_waiting: int
    num_image_queries: int
    num_image_hits: int
    vision_seconds: float
    num_tiles: int


class Backend(Protocol):
    """Answers requests, any number at once. Closing the iterator of `stream` cancels its request."""

    @property
    def is_alive(self) -> bool: ...
    def stream(self, request: EngineRequest) -> AsyncGenerator[Delta, None]: ...
    def stats(self) -> EngineStats: ...
    async def __aenter__(self) -> Backend: ...
    async def __aexit__(self, *reason: object) -> None: ...
