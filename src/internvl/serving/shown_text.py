"""Answer text without grounding tags, piece by piece.

Knows strings only. A tag may be cut anywhere by the pieces; nothing that may become one is let out early.
"""

from __future__ import annotations

import re

TAG = re.compile(r"</?(?:ref|box|quad)>")
TAGS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
BEGINNINGS = frozenset(tag[:size] for tag in TAGS for size in range(1, len(tag)))
LONGEST = max(map(len, TAGS)) - 1


def tag_filters(count: int, *, skips: bool | None, has_form: bool) -> list[TagFilter]:
    """For so many answers to a request. What has a form has it with every letter."""
    return [TagFilter(keeps=skips is False or has_form) for _ in range(count)]


class TagFilter:
    """Passes text on without tags. The pieces joined are the same however the text was cut."""

    def __init__(self, *, keeps: bool = False) -> None:
        """`keeps` lets tags through as they are."""
        self.keeps = keeps
        self.held = ""

    def push(self, piece: str) -> str:
        """Text that is certain to be shown."""
        if self.keeps:
            return piece
        *certain, tail = TAG.split(self.held + piece)
        size = next((n for n in range(min(LONGEST, len(tail)), 0, -1) if tail[-n:] in BEGINNINGS), 0)
        self.held = tail[len(tail) - size :]
        return "".join([*certain, tail[: len(tail) - size]])

    def finish(self) -> str:
        """What was held back and became no tag."""
        held, self.held = self.held, ""
        return held
