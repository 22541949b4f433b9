"""What comes back from a chat model.

Plain values: text, boxes, and what it cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from internvl.generation.result import FinishReason, TokenLogprob
from internvl.processing.conversation import Conversation
from internvl.processing.grounding import Box


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an answer cost. Times are in seconds; in a batch they are those of the whole batch.

    `prompt_tokens` include the `vision_tokens`. `prepare_seconds`: reading and tiling pictures;
    `vision_seconds`: the tower, near zero for pictures seen before; `generate_seconds`: prompt and answer.
    """

    prompt_tokens: int
    vision_tokens: int
    tiles: int
    new_tokens: int
    prepare_seconds: float
    vision_seconds: float
    generate_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer.

    `text` is what the released code returns: special tokens left out, white space stripped.
    `marked_text` keeps the grounding tags; `boxes` are read from it, in pixels of the last picture.
    `history` is the conversation with this answer, to be passed to the next call. `ids` end with the
    token that ended the answer.
    """

    text: str
    marked_text: str
    boxes: tuple[Box, ...]
    history: Conversation
    finish_reason: FinishReason
    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    score: float | None = None
    usage: Usage

    def __str__(self) -> str:
        return self.text

    def as_json(self) -> dict[str, Any]:
        """A JSON object without the history."""
        return {
            "text": self.text,
            "marked_text": self.marked_text,
            "boxes": [_fields(box) for box in self.boxes],
            "finish_reason": self.finish_reason,
            "usage": _fields(self.usage),
        }


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}
