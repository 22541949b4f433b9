"""The items of a response in the making, and the events that tell of each step.

A message, if anything is said, and calls of functions. Knows the protocol's objects only.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

from internvl.serving.protocol_items import Status, call_item
from internvl.serving.protocol_responses import item, text_part

Events = Iterator[dict[str, Any]]


class Items:
    """What was said and called so far. White space before calls is no message: with `may_call`, none begins
    until more is said."""

    def __init__(self, *, may_call: bool) -> None:
        self.done: list[dict[str, Any]] = []
        self.text = ""
        self._may_call = may_call
        self._id = f"msg_{secrets.token_hex(16)}"
        self._place: dict[str, Any] | None = None

    def begin(self) -> Events:
        """Before anything is there."""
        if not self._may_call:
            yield from self._open()

    def say(self, piece: str) -> Events:
        """More text of the message."""
        self.text += piece
        if self._place is None:
            if not self.text.strip():
                return
            yield from self._open()
            piece = self.text
        yield {"type": "response.output_text.delta", **self._at(), "delta": piece, "logprobs": []}

    def call(self, call: dict[str, Any]) -> Events:
        """A whole call, as chat completions have it."""
        id, index = f"fc_{secrets.token_hex(16)}", len(self.done)
        whole = call_item(id, call, "completed")
        self.done.append(whole)
        empty = call_item(id, call, "in_progress", is_empty=True)
        at: dict[str, Any] = {"item_id": id, "output_index": index}
        arguments = whole["arguments"]
        yield {"type": "response.output_item.added", "output_index": index, "item": empty}
        yield {"type": "response.function_call_arguments.delta", **at, "delta": arguments}
        yield {
            "type": "response.function_call_arguments.done",
            **at,
            "name": whole["name"],
            "arguments": arguments,
        }
        yield {"type": "response.output_item.done", "output_index": index, "item": whole}

    def end(self, status: Status) -> Events:
        """The message is whole, or cut short. An answer that is nothing is an empty message."""
        if self._place is None:
            if self.done:
                return
            yield from self._open()
            if self.text:
                yield {"type": "response.output_text.delta", **self._at(), "delta": self.text, "logprobs": []}
        at, index = self._at(), self._at()["output_index"]
        self.done[index] = item(self._id, self.text, status)
        yield {"type": "response.output_text.done", **at, "text": self.text, "logprobs": []}
        yield {"type": "response.content_part.done", **at, "part": text_part(self.text)}
        yield {"type": "response.output_item.done", "output_index": index, "item": self.done[index]}

    def _open(self) -> Events:
        empty, index = item(self._id, None, "in_progress"), len(self.done)
        self.done.append(empty)
        self._place = {"item_id": self._id, "output_index": index, "content_index": 0}
        yield {"type": "response.output_item.added", "output_index": index, "item": empty}
        yield {"type": "response.content_part.added", **self._place, "part": text_part("")}

    def _at(self) -> dict[str, Any]:
        assert self._place is not None
        return self._place
