"""Marks, entries and tiles: what agrees, what is filled in, what is refused."""

from __future__ import annotations

import pytest

from internvl.compat.rounds import read_round, read_rounds, share_out
from internvl.errors import PromptError

TOKENS = 4


def written(tiles: int) -> str:
    return "<img>" + "<IMG_CONTEXT>" * TOKENS * tiles + "</img>"


@pytest.mark.parametrize(
    ("question", "history", "num_tiles", "given", "expected", "counts"),
    [
        ("hi", None, 0, None, "hi", ()),
        ("what?", None, 3, None, "<image>\nwhat?", (3,)),
        ("what?", [], 3, None, "<image>\nwhat?", (3,)),
        ("<image> what?", None, 3, None, "<image> what?", (3,)),
        ("<image> <image>", None, 3, [2, 1], "<image> <image>", (2, 1)),
        ("and?", [("<image>\nwhat?", "a cat")], 3, None, "and?", (3,)),
        ("<image> and?", [("<image>\nwhat?", "a cat")], 3, [1, 2], "<image> and?", (1, 2)),
        (f"{written(2)}\nwhat?", None, 2, None, "<image>\nwhat?", (2,)),
        (f"{written(2)}{written(1)} both?", None, 3, None, "<image><image> both?", (2, 1)),
        ("<image> and?", [(f"{written(2)}\nwhat?", "a cat")], 5, None, "<image> and?", (2, 3)),
        ("and?", [("hi", "hello")], 0, None, "and?", ()),
    ],
)
def test_what_agrees(question, history, num_tiles, given, expected, counts) -> None:
    found = read_round(question, history, num_tiles, given, TOKENS)
    assert (found.question, found.tile_counts) == (expected, counts)
    assert len(found.history) == len(history or ())
    assert all("<img>" not in old for old, _ in found.history)


@pytest.mark.parametrize(
    ("question", "history", "num_tiles", "given", "message"),
    [
        ("<image> what?", None, 0, None, "1 <image> marks .* 0 pictures"),
        ("<image> <image>", None, 3, None, "2 <image> marks share 3 tiles"),
        ("<image>", None, 3, [2, 1], "1 <image> marks .* 2 pictures"),
        ("what?", None, 3, [2, 1], "1 <image> marks .* 2 pictures"),
        ("<image>", None, 3, [2], "sums to 2, but pixel_values has 3"),
        ("<image>", None, 0, [2], "sums to 2, but pixel_values has 0"),
        ("<image> <image>", None, 3, [3, 0], "at least 1"),
        ("<image>", None, 3, ["x"], "whole numbers"),
        ("<image>", None, 3, 3, "whole numbers"),
        ("and?", [("what?", "a cat")], 3, None, "0 <image> marks .* 1 pictures"),
        ("and?", [("<image>", "a"), ("<image>", "b")], 3, [3], "2 <image> marks .* 1 pictures"),
        (written(2), None, 3, [3], "written out with 2 tiles, but has 3"),
        ("<img><IMG_CONTEXT></img>", None, 1, None, "no whole number of tiles of 4"),
        ("<img></img>", None, 1, None, "0 x <IMG_CONTEXT>"),
        (None, None, 0, None, "question must be a string"),
        ("hi", [("only a question",)], 0, None, "pairs"),
        ("hi", [("a", 3)], 0, None, "pairs"),
    ],
)
def test_what_is_refused(question, history, num_tiles, given, message) -> None:
    with pytest.raises(PromptError, match=message):
        read_round(question, history, num_tiles, given, TOKENS)


def test_the_history_is_not_changed() -> None:
    history = [("<image>\nwhat?", "a cat")]
    found = read_round("and?", history, 2, None, TOKENS)
    assert found.with_answer("a dog") == [("<image>\nwhat?", "a cat"), ("and?", "a dog")]
    assert history == [("<image>\nwhat?", "a cat")]


@pytest.mark.parametrize(
    ("questions", "entries", "num_tiles", "expected"),
    [
        (["a", "b"], None, 0, [(), ()]),
        (["a", "b"], [1, 1], 0, [(), ()]),
        (["a"], None, 3, [None]),
        (["a", "<image> b"], [2, 1], 3, [(2,), (1,)]),
        (["a", "b"], [0, 3], 3, [(), (3,)]),
        (["<image><image> a", "b", "<image> c"], [[1, 2], [], [3]], 6, [(1, 2), (), (3,)]),
        (["<image><image> a", "b", "<image> c"], [[1, 2], 0, 3], 6, [(1, 2), (), (3,)]),
        (["<image><image> a", "b", "<image> c"], [1, 2, 3], 6, [(1, 2), (), (3,)]),
        (["<image><image> a", "<image> c"], [1, 2, 3], 6, [(1, 2), (3,)]),
    ],
)
def test_tiles_are_shared_out(questions, entries, num_tiles, expected) -> None:
    assert share_out(questions, entries, num_tiles) == expected


@pytest.mark.parametrize(
    ("questions", "entries", "num_tiles", "message"),
    [
        (["a", "b"], None, 3, "2 questions share 3 tiles"),
        (["a", "b"], [3], 3, "1 entries for 2 questions"),
        (["<image> <image>", "b"], [3], 3, "1 entries for 2 questions"),
        (["a", "b"], [[1], [1], [1]], 3, "3 entries for 2 questions"),
        (["a", "b"], [1, 1], 3, "sums to 2, but pixel_values has 3"),
        (["a", "<image> b"], [2, 1], 0, "sums to 3, but pixel_values has 0"),
        ("a", [1], 1, "list of strings"),
        ([3], [1], 1, "list of strings"),
    ],
)
def test_batches_that_are_refused(questions, entries, num_tiles, message) -> None:
    with pytest.raises(PromptError, match=message):
        read_rounds(questions, None, num_tiles, entries, TOKENS)


def test_histories_of_a_batch() -> None:
    histories = [[("<image>\nwhat?", "a cat")], None]
    found = read_rounds(["and?", "b"], histories, 3, [2, 1], TOKENS)
    assert [one.question for one in found] == ["and?", "<image>\nb"]
    with pytest.raises(PromptError, match="2 questions need 2 histories"):
        read_rounds(["a", "b"], [None], 0, None, TOKENS)
