"""Guesses at the next tokens, taken from what was there before: prompt lookup.

Where the last few ids have occurred already, what followed them there may follow again: quoted text, tables,
JSON. Guesses are checked by the model in one pass; wrong ones cost a little time and never change an answer.
Knows token ids only.
"""

from __future__ import annotations

from collections.abc import Sequence

SHORTEST, LONGEST = 2, 4
"""Ids that must repeat; the longest repetition is believed first."""


class PromptLookup:
    """The ids of one growing sequence, and where each run of 2 to 4 of them was last continued."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._following: dict[tuple[int, ...], int] = {}

    def extend(self, ids: Sequence[int]) -> None:
        """Takes the next ids of the sequence."""
        for id in ids:
            for size in range(SHORTEST, min(LONGEST, len(self._ids)) + 1):
                self._following[tuple(self._ids[-size:])] = len(self._ids)
            self._ids.append(id)

    def propose(self, count: int) -> list[int]:
        """Up to `count` ids that may come next; none where nothing repeats."""
        for size in range(min(LONGEST, len(self._ids)), SHORTEST - 1, -1):
            place = self._following.get(tuple(self._ids[-size:]))
            if place is not None:
                return self._ids[place : place + count]
        return []
