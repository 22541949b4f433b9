"""Boxes in text: `<ref>label</ref><box>[[x1, y1, x2, y2], ...]</box>`, written, read and drawn.

Coordinates in text are integers 0..1000 of the original picture's width and height. Reading runs in
time linear in the text, evaluates nothing, and keeps whatever is well formed. Knows no model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain

from PIL import Image, ImageColor, ImageDraw, ImageFont

from internvl.errors import InputError

Point = tuple[float, float]
SCALE = 1000
TAG = re.compile(r"</?(?:ref|box|quad)>")
# Bounded digits keep a long run of them from being a number at all.
NUMBER = r"\s*([0-9]{1,4}(?:[.][0-9]{1,6})?)\s*"
FOUR = re.compile(r"\[" + ",".join([NUMBER] * 4) + r"\]")
EIGHT = re.compile(r"\[" + ",".join([NUMBER] * 8) + r"\]")
LAST_LATIN = 0x24F
CJK_FONTS = (
    *("NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.otf", "wqy-zenhei.ttc", "wqy-microhei.ttc"),
    *("DroidSansFallbackFull.ttf", "PingFang.ttc", "msyh.ttc", "simsun.ttc"),
)
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#800000")


@dataclass(frozen=True, slots=True)
class Box:
    """A labelled rectangle in pixels of the original picture; `raw` is what the text said, 0..1000."""

    label: str
    x1: float
    y1: float
    x2: float
    y2: float
    raw: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Quad:
    """A labelled quadrilateral: four corners in pixels; `raw` is what the text said, 0..1000."""

    label: str
    points: tuple[Point, Point, Point, Point]
    raw: tuple[float, ...]


def parse_boxes(text: str, width: int, height: int) -> list[Box]:
    """Every well-formed box of an answer about a picture of this size, in order of the text.

    A label holds for all boxes that follow it directly; a box without one gets "". Boxes outside 0..1000
    are left out, corners given in the wrong order are sorted, and an answer that was cut off keeps its
    complete boxes.
    """
    boxes = []
    for label, numbers in _regions(text, "box", FOUR):
        x1, x2 = sorted(_pixels(numbers[0::2], width))
        y1, y2 = sorted(_pixels(numbers[1::2], height))
        boxes.append(Box(label, x1, y1, x2, y2, numbers))
    return boxes


def parse_quads(text: str, width: int, height: int) -> list[Quad]:
    """The same for `<quad>[[x1, y1, x2, y2, x3, y3, x4, y4], ...]</quad>`."""
    quads = []
    for label, numbers in _regions(text, "quad", EIGHT):
        a, b, c, d = zip(_pixels(numbers[0::2], width), _pixels(numbers[1::2], height), strict=True)
        quads.append(Quad(label, (a, b, c, d), numbers))
    return quads


def _regions(text: str, kind: str, pattern: re.Pattern[str]) -> Iterable[tuple[str, tuple[float, ...]]]:
    """(label, numbers) of every group of numbers inside `kind` tags."""
    label = opened = ""
    start = 0
    for tag in chain(TAG.finditer(text), [None]):
        content = text[start : tag.start() if tag else len(text)]
        start = tag.end() if tag else len(text)
        if opened == f"<{kind}>":
            for match in pattern.finditer(content):
                numbers = tuple(float(group) for group in match.groups())
                if max(numbers) <= SCALE:
                    yield label, numbers
        elif opened == "<ref>":
            label = content.strip() if tag and tag.group() == "</ref>" else ""
        elif opened.startswith("</") and content.strip(" \t\r\n,;"):
            label = ""
        opened = tag.group() if tag else ""


def _pixels(values: Sequence[float], side: int) -> list[float]:
    return [value * side / SCALE for value in values]


def encode_boxes(label: str, boxes: Sequence[Sequence[float]], width: int, height: int) -> str:
    """Rectangles in pixels (x1, y1, x2, y2) as the models were trained to write them, truncated to integers.

    Raises `InputError` for boxes outside the picture and for labels that contain tags.
    """
    if width < 1 or height < 1:
        raise InputError(f"a picture of {width} x {height} pixels has no boxes")
    if TAG.search(label):
        raise InputError(f"labels cannot contain <ref>, <box> or <quad> tags: {label[:80]!r}")
    if not boxes:
        raise InputError(f"{label[:80]!r} needs at least one box")
    groups = ", ".join(_group(box, width, height) for box in boxes)
    return f"<ref>{label}</ref><box>[{groups}]</box>"


def encode_box(label: str, box: Sequence[float], width: int, height: int) -> str:
    """`encode_boxes` of one rectangle."""
    return encode_boxes(label, [box], width, height)


def _group(box: Sequence[float], width: int, height: int) -> str:
    values = [float(value) for value in box]
    if len(values) != 4 or not all(math.isfinite(value) for value in values):
        raise InputError(f"a box is four numbers x1, y1, x2, y2, not {box}")
    x1, y1, x2, y2 = values
    if not (0 <= x1 <= x2 <= width and 0 <= y1 <= y2 <= height):
        raise InputError(f"box {values} does not lie in the picture of {width} x {height} pixels")
    sides = (width, height, width, height)
    return str([int(value / side * SCALE) for value, side in zip(values, sides, strict=True)])


def draw_boxes(image: Image.Image, regions: Sequence[Box | Quad]) -> Image.Image:
    """A copy of the picture with the regions and their labels on it, one colour a label.

    Labels beyond Latin letters are written in the first of `CJK_FONTS` that this machine has.
    """
    canvas = image.convert("RGB") if image.mode != "RGB" else image.copy()
    draw = ImageDraw.Draw(canvas)
    line = max(1, round(min(canvas.size) / 250))
    labels = list(dict.fromkeys(region.label for region in regions))
    font = _font(labels, max(10, round(min(canvas.size) / 40)))
    for region in regions:
        colour = ImageColor.getrgb(COLOURS[labels.index(region.label) % len(COLOURS)])
        corners = _corners(region)
        draw.line([*corners, corners[0]], fill=colour, width=line, joint="curve")
        if region.label:
            _write(draw, corners[0], region.label[:80], font, colour)
    return canvas


def _font(labels: Iterable[str], size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if any(ord(letter) > LAST_LATIN for label in labels for letter in label):
        for name in CJK_FONTS:
            with suppress(OSError):
                return ImageFont.truetype(name, size)
    return ImageFont.load_default(size=size)


def _corners(region: Box | Quad) -> list[Point]:
    if isinstance(region, Quad):
        return list(region.points)
    return [(region.x1, region.y1), (region.x2, region.y1), (region.x2, region.y2), (region.x1, region.y2)]


def _write(
    draw: ImageDraw.ImageDraw,
    corner: Point,
    label: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    colour: tuple[int, ...],
) -> None:
    """The label above the corner, or below it at the upper edge of the picture."""
    text = " ".join(label.encode(errors="replace").decode().split())
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    x, y = corner[0], max(0.0, corner[1] - (bottom - top) - 4)
    draw.rectangle((x, y, x + right - left + 4, y + bottom - top + 4), fill=colour)
    draw.text((x + 2 - left, y + 2 - top), text, fill="white", font=font)
