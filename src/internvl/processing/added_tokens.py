"""Tokens that stand for themselves: where they are in a text, and which of them the user may not write.

Knows no vocabulary and no library: a text goes in, stretches of text and recognised tokens come out.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

Span = tuple[int, int]
"""Characters from the first up to, not including, the second."""

_WHITE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token matched as a whole, before the rest of the text is cut into pieces.

    `lstrip` and `rstrip` eat the white space before and after it; `single_word` needs a space or the
    border of the text on both sides.
    """

    content: str
    id: int
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    special: bool = True


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of text, or one added token."""

    start: int
    end: int
    token: AddedToken | None = None


class Splitter:
    """Cuts a text at its added tokens: the leftmost first, of those the longest."""

    def __init__(self, tokens: Iterable[AddedToken], free: Collection[str] = ()) -> None:
        """`free` are the contents that are recognised inside plain text, too."""
        self._tokens = {token.content: token for token in tokens if token.content}
        self._free = frozenset(free)
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(re.escape(content) for content in longest_first) or r"(?!)")
        known = self._tokens.values()
        self._before = tuple(token.content.strip() for token in known if token.rstrip)
        self._behind = tuple(token.content.strip() for token in known if token.lstrip)

    def split(self, text: str, plain: Sequence[Span] = ()) -> list[Part]:
        """Parts in order, empty stretches left out; white space eaten by a token is in no part.

        A match that touches one of the `plain` spans is not one, unless its content is free.
        """
        covered = merge(plain)
        parts: list[Part] = []
        position, eats = 0, False
        for start, end, token in self._matches(text, covered):
            parts += _stretch(text, position, start, eats, token.lstrip)
            parts.append(Part(start, end, token))
            position, eats = end, token.rstrip
        return [*parts, *_stretch(text, position, len(text), eats, False)]

    def without_eaten(self, text: str) -> str:
        """`text` but for all white space that a token may eat, which stands beside the name of one that does.

        The name may be no token there, so that this takes away more than `split` does, never less.
        """
        if not (self._before or self._behind):
            return text
        kept, end = [], 0
        for run in _WHITE.finditer(text):
            if text.endswith(self._before, 0, run.start()) or text.startswith(self._behind, run.end()):
                kept.append(text[end : run.start()])
                end = run.end()
        return "".join([*kept, text[end:]])

    def _matches(self, text: str, covered: Sequence[Span]) -> Iterator[tuple[int, int, AddedToken]]:
        position = 0
        while match := self._pattern.search(text, position):
            token = self._tokens[match[0]]
            is_escaped = token.content not in self._free and overlaps(covered, match.span())
            if is_escaped or (token.single_word and not _stands_alone(text, *match.span())):
                position = match.start() + 1
                continue
            position = match.end()
            yield match.start(), match.end(), token


def merge(spans: Iterable[Span]) -> list[Span]:
    """The same characters as sorted spans that do not touch; empty ones are dropped."""
    merged: list[Span] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def overlaps(merged: Sequence[Span], span: Span) -> bool:
    """Whether a character of `span` is in one of the spans that `merge` gave."""
    before_end = bisect_right(merged, (span[1] - 1, float("inf")))
    return before_end > 0 and merged[before_end - 1][1] > span[0]


def _stretch(text: str, start: int, end: int, strips_left: bool, strips_right: bool) -> list[Part]:
    if strips_left:
        start = end - len(text[start:end].lstrip())
    if strips_right:
        end = start + len(text[start:end].rstrip())
    return [Part(start, end)] if start < end else []


def _stands_alone(text: str, start: int, end: int) -> bool:
    return text[max(0, start - 1) : start] in ("", " ") and text[end : end + 1] in ("", " ")
