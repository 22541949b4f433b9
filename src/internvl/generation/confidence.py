"""How sure a model was of an answer, and of each value of an answer that is JSON.

The confidence of some tokens is the geometric mean of their probabilities: e to the mean of their natural
log-probabilities, from 0 to 1. These are the model's own, before temperature, penalties and the form of the
answer, so that a token which the form forced counts with what the model itself gave it. It is no probability
of being right: how the two go together has to be measured on data. Knows strings and numbers only.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

Piece = tuple[str, float | None]
"""The text that became certain by a token, and its log-probability; None for text that no token brought."""

LEXEME = re.compile(r'\s*(?:([{}\[\],:])|("(?:[^"\\]|\\.)*")|([^\s{}\[\],:"]+))', re.DOTALL)


def confidence(logprobs: Sequence[float]) -> float | None:
    """Of tokens with these log-probabilities; None where there are none."""
    return math.exp(math.fsum(logprobs) / len(logprobs)) if logprobs else None


def field_confidences(pieces: Sequence[Piece]) -> dict[str, float]:
    """For each text, number, truth value and null of a JSON text, by its JSON pointer (RFC 6901): the
    confidence of the tokens that wrote it, its closing quote included.

    A text that was cut short has those values that are whole. A token that wrote part of a value and what
    stands beside it counts. Bytes of one character may come from several tokens; all of them count.
    """
    starts, ends, groups = _group(pieces)
    found: dict[str, float] = {}
    for pointer, (start, end) in find_values("".join(text for text, _ in pieces)).items():
        wrote = groups[bisect_right(ends, start) : bisect_left(starts, end)]
        value = confidence([logprob for group in wrote for logprob in group])
        if value is not None:
            found[pointer] = value
    return found


def find_values(text: str) -> dict[str, tuple[int, int]]:
    """Where the values without values inside stand in a JSON text, by JSON pointer; texts without their
    opening quote. What follows after something that is no JSON is left out."""
    found: dict[str, tuple[int, int]] = {}
    path: list[str | int] = []  # the name or the number of each value around
    before, place = "", 0
    while lexeme := LEXEME.match(text, place):
        place = lexeme.end()
        mark, quoted, _ = lexeme.groups()
        if mark in ("{", "["):
            path.append("" if mark == "{" else 0)
        elif mark in ("}", "]") and path:
            path.pop()
        elif mark == "," and path and isinstance(last := path[-1], int):
            path[-1] = last + 1
        elif quoted and before in ("{", ",") and path and isinstance(path[-1], str):
            path[-1] = _read(quoted)
        elif mark is None and (quoted or place < len(text) or not path):
            found[_pointer(path)] = (lexeme.start(2) + 1 if quoted else lexeme.start(3), place)
        before = mark or ""
    return found


def _group(pieces: Sequence[Piece]) -> tuple[list[int], list[int], list[list[float]]]:
    """Pieces of text one after another: where each starts and ends, and the tokens that brought it."""
    starts, ends, groups = [], [], []
    waiting: list[float] = []
    place = 0
    for text, logprob in pieces:
        waiting += [] if logprob is None else [logprob]
        if text:
            starts.append(place)
            place += len(text)
            ends.append(place)
            groups.append(waiting)
            waiting = []
    return starts, ends, groups


def _read(quoted: str) -> str:
    try:
        return str(json.loads(quoted, strict=False))
    except ValueError:
        return quoted[1:-1]


def _pointer(path: Sequence[str | int]) -> str:
    return "".join(f"/{str(name).replace('~', '~0').replace('/', '~1')}" for name in path)
