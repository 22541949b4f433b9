"""When an answer ends: stop ids, stop strings and the token limit.

Stop strings are looked for in text that arrives in pieces; knows no tokenizer and no model.
"""

from __future__ import annotations

from collections.abc import Sequence

from internvl.generation.result import FinishReason
from internvl.generation.sampling import Sampling


def find_reason(sampling: Sampling, num_new: int, last_id: int) -> FinishReason | None:
    """Why an answer of `num_new` tokens with this last id is over, or None."""
    if last_id in sampling.stop_ids:
        return "stop"
    return "length" if num_new >= sampling.max_new_tokens else None


class StopStrings:
    """Passes text on until a stop string appears, across pieces; never lets out the beginning of one.

    `is_found` tells that a stop string appeared: it and all after it are swallowed. Among several, the one
    complete first counts, so it does not matter how the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.held = ""
        self.is_found = False

    def push(self, piece: str) -> str:
        """Text that is now certain to belong to the answer."""
        if self.is_found or not self.stops:
            return "" if self.is_found else piece
        text = self.held + piece
        found = [(text.find(stop) + len(stop), -len(stop)) for stop in self.stops if stop in text]
        self.is_found = bool(found)
        end = sum(min(found)) if found else len(text) - self._num_held(text)
        self.held = "" if found else text[end:]
        return text[:end]

    def finish(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self.held = self.held, ""
        return held

    def _num_held(self, text: str) -> int:
        """Length of the longest end of `text` that could be the beginning of a stop string."""
        longest = max(map(len, self.stops)) - 1
        sizes = range(min(longest, len(text)), 0, -1)
        return next((size for size in sizes if any(stop.startswith(text[-size:]) for stop in self.stops)), 0)
