"""Boxes in text: written, read (also from hostile text), drawn."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFont

from internvl.errors import InputError
from internvl.processing.grounding import Box, draw_boxes, encode_box, encode_boxes, parse_boxes, parse_quads


def raws(text: str) -> list[tuple[str, tuple[float, ...]]]:
    return [(box.label, box.raw) for box in parse_boxes(text, 1000, 1000)]


def test_pixels_of_the_original_picture():
    (box,) = parse_boxes("The cat is <ref>a cat</ref><box>[[100, 250, 500, 1000]]</box>.", 640, 480)
    assert box == Box("a cat", 64.0, 120.0, 320.0, 480.0, (100, 250, 500, 1000))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no boxes here", []),
        ("", []),
        (
            "<ref>dog</ref><box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>",
            [("dog", (1, 2, 3, 4)), ("dog", (5, 6, 7, 8))],
        ),
        (
            "<ref>a</ref><box>[[1,2,3,4]]</box>\n<ref>b</ref> <box>[[5,6,7,8]]</box>",
            [("a", (1, 2, 3, 4)), ("b", (5, 6, 7, 8))],
        ),
        ("<ref> 两只 狗 </ref>\n<box> [ [ 1 , 2 , 3 , 4 ] ] </box>", [("两只 狗", (1, 2, 3, 4))]),
        (
            "<ref>a</ref><box>[[1,2,3,4]]</box>, <box>[[5,6,7,8]]</box>",
            [("a", (1, 2, 3, 4)), ("a", (5, 6, 7, 8))],
        ),
        (
            "<ref>a</ref><box>[[1,2,3,4]]</box> and <box>[[5,6,7,8]]</box>",
            [("a", (1, 2, 3, 4)), ("", (5, 6, 7, 8))],
        ),
        ("<ref>a</ref> is at <box>[[1,2,3,4]]</box>", [("", (1, 2, 3, 4))]),
        ("<box>[1, 2, 3, 4]</box>", [("", (1, 2, 3, 4))]),
        ("<box>[[1.5, 2, 3.25, 4]]</box>", [("", (1.5, 2, 3.25, 4))]),
        ("<ref>x<ref>inner</ref><box>[[1,2,3,4]]</box>", [("inner", (1, 2, 3, 4))]),
    ],
)
def test_answers(text, expected):
    assert raws(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<ref>a</ref><box>[[1,2,3,4], [5,6,7", [("a", (1, 2, 3, 4))]),
        (
            "<ref>a</ref><box>[[1,2,3,4]]<ref>b</ref><box>[[5,6,7,8]]",
            [("a", (1, 2, 3, 4)), ("b", (5, 6, 7, 8))],
        ),
        ("<box>[[1,2,3],[1,2,3,4,5],[5,6,7,8]]</box>", [("", (5, 6, 7, 8))]),
        ("<box>[[1,2,3,1001],[-1,2,3,4],[nan,1,2,3],[inf,1,2,3],[1e3,1,2,3],[0x1,2,3,4]]</box>", []),
        ("<box>[[99999999999999,1,2,3]]</box>", []),
        ("<box>__import__('os').system('x')</box>", []),
        ("<box>[[1, 2, 3, 4]] + [[5, 6, 7, 8]]</box>", [("", (1, 2, 3, 4)), ("", (5, 6, 7, 8))]),
        ("</box></ref>[[1,2,3,4]]<box></box>", []),
        ("<quad>[[1,2,3,4]]</quad>", []),
        ("<box>[[１,２,３,４]]</box>", []),
    ],
)
def test_malformed_answers_keep_what_is_well_formed(text, expected):
    assert raws(text) == expected


def test_corners_in_the_wrong_order_are_sorted():
    (box,) = parse_boxes("<box>[[900, 100, 300, 50]]</box>", 1000, 1000)
    assert (box.x1, box.y1, box.x2, box.y2) == (300, 50, 900, 100)
    assert box.raw == (900, 100, 300, 50)


def test_quads():
    (quad,) = parse_quads("<ref>sign</ref><quad>[[0, 0, 500, 10, 500, 1000, 0, 990]]</quad>", 200, 100)
    assert (quad.label, quad.points) == ("sign", ((0, 0), (100, 1), (100, 100), (0, 99)))
    assert parse_quads("<box>[[0, 0, 500, 10, 500, 1000, 0, 990]]</box>", 200, 100) == []


MEGABYTES = 10


@pytest.mark.parametrize(
    "unit",
    [
        "[",
        "<ref>",
        "<box>",
        "<box>[[",
        "<ref>a</ref><box>",
        "[1,",
        "<box>[1   ",
        "<",
        " ",
        "9",
        "<box>[[1,2,3,",
    ],
)
def test_ten_megabytes_of_anything_take_seconds(unit):
    text = "<box>" + unit * (MEGABYTES * 1_000_000 // len(unit))
    start = time.perf_counter()
    assert parse_boxes(text, 100, 100) == []
    assert parse_quads(text, 100, 100) == []
    assert time.perf_counter() - start < 20


PIECES = [*"[],. 0123456789a", "<ref>", "</ref>", "<box>", "</box>", "<quad>", "[[1, 2, 3, 4]]"]


@given(st.lists(st.sampled_from(PIECES)).map("".join))
def test_any_text_is_read(text):
    for box in parse_boxes(text, 50, 40):
        assert 0 <= box.x1 <= box.x2 <= 50
        assert 0 <= box.y1 <= box.y2 <= 40


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 640, 480), "[[0, 0, 1000, 1000]]"),
        ((1, 1, 2, 2), "[[1, 2, 3, 4]]"),
        ((64.9, 120.4, 320, 479.9), "[[101, 250, 500, 999]]"),
    ],
)
def test_coordinates_are_truncated(box, expected):
    assert encode_box("cat", box, 640, 480) == f"<ref>cat</ref><box>{expected}</box>"


def test_several_boxes_of_one_label():
    text = encode_boxes("cat", [(0, 0, 1, 1), (1, 1, 2, 2)], 2, 2)
    assert text == "<ref>cat</ref><box>[[0, 0, 500, 500], [500, 500, 1000, 1000]]</box>"
    assert [box.raw for box in parse_boxes(text, 2, 2)] == [(0, 0, 500, 500), (500, 500, 1000, 1000)]


@given(st.integers(1, 4000), st.integers(1, 4000), st.tuples(*[st.floats(0, 1)] * 4))
def test_what_is_written_is_read_back_within_a_thousandth(width, height, fractions):
    x1, x2 = sorted((fractions[0] * width, fractions[1] * width))
    y1, y2 = sorted((fractions[2] * height, fractions[3] * height))
    (box,) = parse_boxes(encode_box("a", (x1, y1, x2, y2), width, height), width, height)
    assert max(abs(box.x1 - x1), abs(box.x2 - x2)) <= width / 1000 + 1e-9
    assert max(abs(box.y1 - y1), abs(box.y2 - y2)) <= height / 1000 + 1e-9


@pytest.mark.parametrize(
    ("label", "box", "size", "message"),
    [
        ("a", (0, 0, 11, 5), (10, 10), "does not lie in the picture of 10 x 10"),
        ("a", (-1, 0, 5, 5), (10, 10), "does not lie"),
        ("a", (5, 0, 4, 5), (10, 10), "does not lie"),
        ("a", (0, 0, float("nan"), 5), (10, 10), "four numbers"),
        ("a", (0, 0, 5), (10, 10), "four numbers"),
        ("a</ref>", (0, 0, 5, 5), (10, 10), "cannot contain"),
        ("a", (0, 0, 5, 5), (0, 10), "0 x 10"),
    ],
)
def test_boxes_that_cannot_be_written(label, box, size, message):
    with pytest.raises(InputError, match=message):
        encode_box(label, box, *size)


def test_no_boxes_to_write():
    with pytest.raises(InputError, match="at least one"):
        encode_boxes("a", [], 10, 10)


def test_drawing_marks_the_edges_of_a_copy():
    image = Image.new("RGB", (200, 100), "white")
    boxes = parse_boxes(
        "<ref>cat</ref><box>[[250, 400, 750, 900]]</box><ref>b</ref><box>[[0,0,100,100]]</box>", 200, 100
    )
    drawn = draw_boxes(image, boxes)
    assert image.getextrema() == ((255, 255),) * 3
    assert (
        drawn.getpixel((50, 80))
        == drawn.getpixel((150, 80))
        == drawn.getpixel((100, 90))
        == (0xE6, 0x19, 0x4B)
    )
    assert drawn.getpixel((100, 60)) == (255, 255, 255)
    assert drawn.getpixel((20, 8)) == (0x3C, 0xB4, 0x4B)
    assert not np.array_equal(np.asarray(drawn)[20:40, 50:90], np.asarray(image)[20:40, 50:90])


@pytest.mark.parametrize("label", ["", "猫", "\ud800", "a\nb\tc", "x" * 10_000, "\0\x1b[0m", "🐈"])
def test_any_label_is_drawn(label):
    box = Box(label, 0.0, 0.0, 3.0, 3.0, (0, 0, 1, 1))
    assert draw_boxes(Image.new("L", (4, 4)), [box]).mode == "RGB"


def test_quads_are_drawn():
    (quad,) = parse_quads("<quad>[[0, 0, 500, 0, 500, 500, 0, 500]]</quad>", 100, 100)
    drawn = draw_boxes(Image.new("RGB", (100, 100)), [quad])
    assert drawn.getpixel((50, 25)) == drawn.getpixel((25, 50)) == (0xE6, 0x19, 0x4B)
    assert drawn.getpixel((25, 25)) == (0, 0, 0)


def test_labels_beyond_latin_letters_look_for_a_font(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    load, default = ImageFont.truetype, ImageFont.load_default(size=12)

    def truetype(font: Any, *rest: Any, **options: Any) -> Any:
        if not isinstance(font, str):  # Pillow's own, from memory
            return load(font, *rest, **options)
        asked.append(font)
        if font != "wqy-zenhei.ttc":
            raise OSError("cannot open resource")
        return default

    monkeypatch.setattr(ImageFont, "truetype", truetype)
    picture = Image.new("RGB", (90, 60))
    draw_boxes(picture, parse_boxes("<ref>cat</ref><box>[[1, 1, 9, 9]]</box>", 90, 60))
    assert asked == []
    draw_boxes(picture, parse_boxes("<ref>猫</ref><box>[[1, 1, 9, 9]]</box>", 90, 60))
    assert asked == ["NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.otf", "wqy-zenhei.ttc"]
