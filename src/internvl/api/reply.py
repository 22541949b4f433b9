"""What comes back from a chat model.

Plain values: text, boxes, and what it cost.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from internvl.generation.confidence import confidence
from internvl.generation.result import FinishReason, TokenLogprob
from internvl.processing.conversation import Conversation
from internvl.processing.grounding import Box, Quad, parse_boxes, parse_quads


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
    `marked_text` keeps the grounding tags, from which boxes are read. `picture_sizes` are (width, height)
    of all pictures of the conversation. `history` is the conversation with this answer, to be passed to
    the next call. `ids` end with the token that ended the answer.
    """

    text: str
    marked_text: str
    picture_sizes: tuple[tuple[int, int], ...]
    history: Conversation
    finish_reason: FinishReason
    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    score: float | None = None
    usage: Usage

    @property
    def confidence(self) -> float | None:
        """How sure the model was, from 0 to 1 (`generation.confidence`); None unless `logprobs` were asked
        for."""
        return confidence([entry.logprob for entry in self.logprobs])

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Boxes of the answer, in pixels of the last picture."""
        return self.boxes_on(-1)

    @property
    def quads(self) -> tuple[Quad, ...]:
        """Quadrilaterals of the answer, in pixels of the last picture."""
        return tuple(parse_quads(self.marked_text, *self.picture_sizes[-1])) if self.picture_sizes else ()

    def boxes_on(self, picture: int) -> tuple[Box, ...]:
        """Boxes of the answer, in pixels of picture number `picture` (from 0; -1 is the last).

        The answer itself does not say which of several pictures it means. Empty without pictures.
        """
        return (
            tuple(parse_boxes(self.marked_text, *self.picture_sizes[picture])) if self.picture_sizes else ()
        )

    def __str__(self) -> str:
        return self.text

    def as_json(self) -> dict[str, Any]:
        """A JSON object of everything but the history."""
        return {
            "text": self.text,
            "marked_text": self.marked_text,
            "boxes": [asdict(box) for box in self.boxes],
            "finish_reason": self.finish_reason,
            "ids": list(self.ids),
            "logprobs": [asdict(entry) for entry in self.logprobs],
            "score": self.score,
            "usage": asdict(self.usage),
        }
