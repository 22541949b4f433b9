"""Answers as chat completions and their chunks. Pure values: dictionaries that JSON knows.

Knows no HTTP and no model; the text of tokens comes through a function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from internvl.api.explanation import PictureExplanation
from internvl.engine.request import Delta, EngineUsage
from internvl.generation.confidence import Piece, confidence, field_confidences
from internvl.generation.result import TokenLogprob
from internvl.processing.grounding import parse_boxes

Spell = Callable[[int], str]
"""The text of one token; what is no whole character by itself has U+FFFD."""
Raw = Callable[[int], bytes]
"""The bytes of one token, be they whole characters or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What all chunks of one answer begin with."""

    id: str
    model: str
    created: int

    def of(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage(used: EngineUsage, pictures: Sequence[PictureExplanation]) -> dict[str, Any]:
    """Tokens as the protocol counts them, the image tokens among them, and the grid of every picture."""
    return {
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "total_tokens": used.prompt_tokens + used.completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": used.cached_tokens,
            "image_tokens": used.image_tokens,
        },
        "images": [picture_object(picture) for picture in pictures],
    }


def picture_object(picture: PictureExplanation) -> dict[str, Any]:
    """Size in pixels, grid as [columns, rows], tiles with thumbnail, and tokens of one picture."""
    return {
        "width": picture.size[0],
        "height": picture.size[1],
        "grid": [picture.grid.columns, picture.grid.rows],
        "tiles": picture.num_tiles,
        "tokens": picture.vision_tokens,
    }


def boxes(marked_text: str, pictures: Sequence[PictureExplanation]) -> list[dict[str, Any]]:
    """Boxes of an answer, in pixels of the last picture."""
    return [asdict(box) for box in parse_boxes(marked_text, *pictures[-1].size)] if pictures else []


def logprobs_object(entries: Sequence[TokenLogprob], num_top: int, spell: Spell, raw: Raw) -> dict[str, Any]:
    """The protocol's list, a token each."""
    return {"content": [_logprob(entry, num_top, spell, raw) for entry in entries], "refusal": None}


def prompt_logprobs_object(
    entries: Sequence[TokenLogprob | None], spell: Spell
) -> list[dict[str, Any] | None]:
    """vLLM's list: for each token of the prompt the best ones at its place and itself, by id; None for the
    first. `rank` is known of the best ones only."""
    return [None if entry is None else _ranked(entry, spell) for entry in entries]


def confidence_object(pieces: Sequence[Piece], *, is_json: bool) -> dict[str, Any]:
    """Of the whole answer, and of an answer whose form is JSON for each value by its JSON pointer."""
    logprobs = [logprob for _, logprob in pieces if logprob is not None]
    found: dict[str, Any] = {"answer": confidence(logprobs)}
    return {**found, "fields": field_confidences(pieces)} if is_json else found


def piece_of(delta: Delta) -> Piece:
    """A step of an answer as confidence is computed from it."""
    entry = delta.token.logprob if delta.token is not None else None
    return delta.text, entry.logprob if entry is not None else None


def _ranked(entry: TokenLogprob, spell: Spell) -> dict[str, Any]:
    ranks = {id: rank for rank, (id, _) in enumerate(entry.top, start=1)}
    values = dict([*entry.top, (entry.id, entry.logprob)])
    return {
        str(id): {"logprob": max(value, -9999.0), "rank": ranks.get(id), "decoded_token": spell(id)}
        for id, value in values.items()
    }


def _logprob(entry: TokenLogprob, num_top: int, spell: Spell, raw: Raw) -> dict[str, Any]:
    def token(id: int, logprob: float) -> dict[str, Any]:
        # JSON has no infinity; a token that cannot be drawn is reported as OpenAI does.
        return {"token": spell(id), "logprob": max(logprob, -9999.0), "bytes": list(raw(id))}

    top = [token(id, logprob) for id, logprob in entry.top[:num_top]]
    return {**token(entry.id, entry.logprob), "top_logprobs": top}


def message_object(
    text: str, found: list[dict[str, Any]], calls: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """The assistant's message; `boxes` and `tool_calls` only where there are any."""
    content = None if calls and not text.strip() else text
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    message |= {"tool_calls": list(calls)} if calls else {}
    return {**message, "boxes": found} if found else message


def completion(head: Head, choices: list[dict[str, Any]], used: dict[str, Any]) -> dict[str, Any]:
    return {**head.of("chat.completion"), "choices": choices, "usage": used}


def chunk(head: Head, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {**head.of("chat.completion.chunk"), "choices": choices, **more}


def choice(index: int, finish_reason: str | None, **content: Any) -> dict[str, Any]:
    """One answer of a completion or a chunk: `message` or `delta`, and perhaps `logprobs`."""
    return {"index": index, "logprobs": None, **content, **ending(finish_reason)}


def ending(finish_reason: str | None) -> dict[str, Any]:
    """Why an answer ended, in the protocol's words: one whose time was over is one that was cut short, and
    vLLM's `stop_reason` says by what."""
    if finish_reason == "deadline":
        return {"finish_reason": "length", "stop_reason": "deadline"}
    return {"finish_reason": finish_reason}
