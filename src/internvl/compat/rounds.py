"""Questions, histories and numbers of tiles of the published calls, brought to one form.

A picture is an `<image>` mark with a number of tiles. Histories of the 2024-05 release, in which pictures
stand as `<img><IMG_CONTEXT>...</img>`, become marks again. Knows no tensors and no model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from internvl.config import IMG_CONTEXT, IMG_END, IMG_START
from internvl.errors import PromptError
from internvl.processing.conversation import IMAGE_MARK, shorten

MARK = re.compile(f"{IMAGE_MARK}|{IMG_START}((?:{IMG_CONTEXT})*){IMG_END}")

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Round:
    """A question after its history, and the number of tiles of each picture, in the order of the marks."""

    question: str
    history: tuple[Pair, ...]
    tile_counts: tuple[int, ...]

    def with_answer(self, answer: str) -> list[Pair]:
        """The history for the next call; questions keep their `<image>` marks."""
        return [*self.history, (self.question, answer)]


def read_round(question: Any, history: Any, num_tiles: int, tile_counts: Any, tokens_per_tile: int) -> Round:
    """One question with `num_tiles` tiles for it and its history.

    As in the released code, the first question gets its `<image>` in front if it has none, and without
    `tile_counts` all tiles are one picture. Raises PromptError where the released code goes on with
    pictures missing or left over: marks, entries of `tile_counts` and tiles must agree.
    """
    if not isinstance(question, str):
        raise PromptError(f"the question must be a string, not {shorten(question)}")
    pairs = [_pair(turn) for turn in history or ()]
    if num_tiles and not pairs and not MARK.search(question):
        question = f"{IMAGE_MARK}\n{question}"
    sizes = [
        _written_tiles(match, tokens_per_tile)
        for text in (*(old for old, _ in pairs), question)
        for match in MARK.finditer(text)
    ]
    counts = _complete(sizes, num_tiles) if tile_counts is None else _whole_numbers(tile_counts)
    _check(sizes, counts, num_tiles)
    collapsed = tuple((MARK.sub(IMAGE_MARK, old), answer) for old, answer in pairs)
    return Round(MARK.sub(IMAGE_MARK, question), collapsed, counts)


def _pair(turn: Any) -> Pair:
    if isinstance(turn, list | tuple) and len(turn) == 2 and all(isinstance(side, str) for side in turn):
        return turn[0], turn[1]
    raise PromptError(f"history must be pairs of question and answer, both strings, not {shorten(turn)}")


def _written_tiles(match: re.Match[str], tokens_per_tile: int) -> int | None:
    """The tiles that a written-out picture has, None for a mark."""
    if match[1] is None:
        return None
    tokens = len(match[1]) // len(IMG_CONTEXT)
    if not tokens or tokens % tokens_per_tile:
        raise PromptError(
            f"a picture of {tokens} x {IMG_CONTEXT} in question or history is no whole number of tiles of "
            f"{tokens_per_tile}: write {IMAGE_MARK} instead"
        )
    return tokens // tokens_per_tile


def _complete(sizes: Sequence[int | None], num_tiles: int) -> tuple[int, ...]:
    """Written-out pictures say their tiles; at most one mark takes the tiles that are left."""
    rest = num_tiles - sum(size or 0 for size in sizes)
    if not sizes:
        return (num_tiles,) if num_tiles else ()
    if sizes.count(None) > 1 and num_tiles:
        raise PromptError(
            f"{sizes.count(None)} {IMAGE_MARK} marks share {rest} tiles: say how many each has with "
            "num_patches_list (history first)"
        )
    if not num_tiles:
        return ()
    return tuple(rest if size is None else size for size in sizes)


def _check(sizes: Sequence[int | None], counts: Sequence[int], num_tiles: int) -> None:
    if sum(counts) != num_tiles or any(count < 1 for count in counts):
        raise PromptError(
            f"num_patches_list {list(counts)} sums to {sum(counts)}, but pixel_values has {num_tiles} tiles; "
            "every entry must be at least 1"
        )
    if len(sizes) != len(counts):
        raise PromptError(
            f"{len(sizes)} {IMAGE_MARK} marks in question and history, but {len(counts)} pictures "
            f"(num_patches_list {list(counts)}, {num_tiles} tiles): pass the tiles of all rounds in order "
            "and write one mark for each picture"
        )
    for number, (size, count) in enumerate(zip(sizes, counts, strict=True), start=1):
        if size not in (None, count):
            raise PromptError(f"picture {number} is written out with {size} tiles, but has {count}")


def _whole_numbers(values: Iterable[Any]) -> tuple[int, ...]:
    try:
        return tuple(int(value) for value in values)
    except (TypeError, ValueError) as error:
        raise PromptError(f"num_patches_list must hold whole numbers, not {shorten(values)}") from error


def read_rounds(
    questions: Any, histories: Any, num_tiles: int, entries: Any, tokens_per_tile: int
) -> list[Round]:
    """The questions of a batch, each with its share of the tiles; see `share_out` and `read_round`."""
    if not isinstance(questions, list | tuple) or not all(isinstance(text, str) for text in questions):
        raise PromptError("questions must be a list of strings")
    histories = [None] * len(questions) if histories is None else histories
    if len(histories) != len(questions):
        raise PromptError(
            f"{len(questions)} questions need {len(questions)} histories (or None), not {len(histories)}"
        )
    shares = share_out(questions, entries, num_tiles)
    counts = [num_tiles if share is None else sum(share) for share in shares]
    if sum(counts) != num_tiles:
        raise PromptError(
            f"num_patches_list {entries} sums to {sum(counts)}, but pixel_values has {num_tiles} tiles"
        )
    return [
        read_round(question, pairs, count, share, tokens_per_tile)
        for question, pairs, count, share in zip(questions, histories, counts, shares, strict=True)
    ]


def share_out(questions: Sequence[str], entries: Any, num_tiles: int) -> list[tuple[int, ...] | None]:
    """The numbers of tiles of each question of a batch; None where all tiles are the only question's.

    `entries` holds a number for each question (0 = no picture), or a list of numbers for each question, or,
    where questions have several marks, a number for each mark. Raises PromptError for anything else.
    """
    marks = [len(MARK.findall(question)) for question in questions]
    if not num_tiles and not any(marks):
        return [()] * len(questions)
    if entries is None:
        if len(questions) == 1:
            return [None]
        raise PromptError(
            f"{len(questions)} questions share {num_tiles} tiles: say how many each has with num_patches_list"
        )
    if any(isinstance(entry, list | tuple) for entry in entries):
        nested = [entry if isinstance(entry, list | tuple) else [entry] for entry in entries]
        if len(nested) == len(questions):
            return [_nonzero(entry) for entry in nested]
    elif len(entries) == len(questions) and max(marks) < 2:
        return [_nonzero([entry]) for entry in entries]
    elif len(entries) == sum(marks):
        waiting = iter(entries)
        return [_whole_numbers(next(waiting) for _ in range(count)) for count in marks]
    raise PromptError(
        f"num_patches_list has {len(entries)} entries for {len(questions)} questions with {marks} "
        f"{IMAGE_MARK} marks: give each question a number, or a list of numbers, one for each mark"
    )


def _nonzero(values: Iterable[Any]) -> tuple[int, ...]:
    return tuple(count for count in _whole_numbers(values) if count)
