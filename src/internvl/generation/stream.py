"""From ids that arrive one by one to text that may be shown at once.

Knows ids and a `decode` callable; no tokenizer, no model. `decode` must be monotone apart from an unfinished
character at its end: more ids only ever add text. (Tokenizer clean-up of spaces breaks that; leave it out.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from internvl.generation.stopping import StopStrings

Decode = Callable[[Sequence[int]], str]

REPLACEMENT = "\ufffd"
"""What decoders write for bytes that are no character, or not yet one."""
CONTEXT = 8
"""Ids kept as context: enough for spaces that depend on what stands before, and for any character."""
MAX_WINDOW = 64
MAX_HELD = 32
"""Replacement characters held back; what stands before so many is not going to become text."""


class Detokenizer:
    """Incremental decoding: the pieces joined equal `decode` of all ids, and no piece has half a character.

    Decodes a window of the last ids only, so the cost of a token does not depend on the length of the answer.
    """

    def __init__(self, decode: Decode) -> None:
        self.decode = decode
        self.window: list[int] = []
        self.text = ""
        self.sent = 0

    def push(self, new_id: int) -> str:
        """Text that became certain with `new_id`."""
        self.window.append(new_id)
        self.text = self.decode(self.window)
        piece = self._release(_num_unfinished(self.text))
        return piece + self._shorten() if len(self.window) >= 2 * CONTEXT else piece

    def finish(self) -> str:
        """The rest, with a replacement character for bytes that never became a character."""
        return self._release(0)

    def _release(self, num_held: int) -> str:
        end = max(len(self.text) - num_held, self.sent)
        piece, self.sent = self.text[self.sent : end], end
        return piece

    def _shorten(self) -> str:
        """Drops old ids where the rest decodes to the same end; else the window grows, up to a limit."""
        if self.sent == len(self.text):
            for size in range(CONTEXT, CONTEXT + 4):  # some cut is at the border of a character
                text = self.decode(self.window[-size:])
                if text and self.text.endswith(text):
                    self.window, self.text, self.sent = self.window[-size:], text, len(text)
                    return ""
        return self._cut() if len(self.window) >= MAX_WINDOW else ""

    def _cut(self) -> str:
        """Drops old ids in any case, and gives out the text that would go with them."""
        window = self.window[-CONTEXT:]
        text = self.decode(window)
        piece = self._release(min(len(self.text) - self.sent, len(text)))
        self.sent = len(text) - (len(self.text) - self.sent)
        self.window, self.text = window, text
        return piece


def _num_unfinished(text: str) -> int:
    return min(len(text) - len(text.rstrip(REPLACEMENT)), MAX_HELD)


class TextStream:
    """Detokenizer and stop strings in a row; without `decode` there is no text."""

    def __init__(self, decode: Decode | None, stops: Sequence[str]) -> None:
        self.detokenizer = Detokenizer(decode) if decode else None
        self.stops = StopStrings(stops)

    @property
    def is_stopped(self) -> bool:
        return self.stops.is_found

    def push(self, new_id: int) -> str:
        """Text that became certain with `new_id`."""
        return self.stops.push(self.detokenizer.push(new_id)) if self.detokenizer else ""

    def finish(self) -> str:
        """What was held back; call once, after the last id."""
        rest = self.stops.push(self.detokenizer.finish()) if self.detokenizer else ""
        return rest + self.stops.finish()
