"""Calls of functions in the text of an answer, piece by piece.

Knows strings only. Text up to a mark is passed on as it comes; what is between marks and is no call of a
function that was offered is text.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from internvl.serving.json_text import json_text
from internvl.serving.protocol_tools import CLOSING, OPENING


@dataclass(frozen=True, slots=True)
class Call:
    """One call; `arguments` are JSON, as text."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")

    def as_json(self) -> dict[str, Any]:
        """As the protocol has it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


class CallReader:
    """Takes calls of the functions of these names out of a text; without names it passes all on."""

    def __init__(self, names: Collection[str]) -> None:
        self.names = frozenset(names)
        self.calls: list[Call] = []
        self._held = ""

    def push(self, piece: str) -> str:
        """The text that is certain to be no call; calls are added to `calls`."""
        if not self.names:
            return piece
        self._held += piece
        shown = ""
        while OPENING in self._held:
            before, _, rest = self._held.partition(OPENING)
            inner, mark, after = rest.partition(CLOSING)
            shown += before
            self._held = self._held[len(before) :]
            if not mark:
                return shown
            call = self._read(inner)
            if call is None:
                shown += f"{OPENING}{inner}{CLOSING}"
            else:
                self.calls.append(call)
            self._held = after
        kept = next((n for n in range(len(OPENING) - 1, 0, -1) if self._held.endswith(OPENING[:n])), 0)
        shown += self._held[: len(self._held) - kept]
        self._held = self._held[len(self._held) - kept :]
        return shown

    def finish(self) -> str:
        """What was held back and became no call."""
        held, self._held = self._held, ""
        return held

    def _read(self, text: str) -> Call | None:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(found, dict):
            return None
        name, arguments = found.get("name"), found.get("arguments", {})
        if not isinstance(name, str) or name not in self.names or not isinstance(arguments, dict):
            return None
        return Call(name, json_text(arguments))
