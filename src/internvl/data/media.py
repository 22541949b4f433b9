"""The pictures and the video of a row, and their places in its text.

Nothing is opened here but what `read_video` opens to choose frames. Knows no tokenizer and no forms of rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from internvl.data.source_folder import PICTURES
from internvl.errors import InputError
from internvl.processing.conversation import IMAGE_MARK, Message, Part, Picture, Role, label_frame, shorten
from internvl.processing.messages import DASHED_FRAMES
from internvl.processing.source import is_path, is_url
from internvl.processing.tiling import TileChoice

VIDEO_MARK = "<video>"
ONE_TILE = TileChoice(max_tiles=1)
"""Frames of a video are not cut."""
LIKE_A_PICTURE = re.compile("image|img|picture|photo|file|path", re.IGNORECASE)

Turn: TypeAlias = tuple[Role, str]
FrameReader: TypeAlias = Callable[..., Sequence[Any]]
"""A video and its options (num_segments, fps, bound) to its frames, which need not be decoded yet."""


@dataclass(frozen=True, slots=True)
class Media:
    """Pictures, for an `<image>` mark each, and frames, for one `<video>` mark together."""

    pictures: tuple[Picture, ...] = ()
    frames: tuple[Picture, ...] = ()


def find_media(row: Mapping[str, Any], root: Path, read_video: FrameReader) -> Media:
    """What `image` or `images`, and `video` with `clip` name. Raises InputError, also where a row has none of
    them but a picture under another key."""
    pictures = [Picture(resolve(source, root)) for source in listed(row, "image", "images")]
    videos = listed(row, "video", "videos")
    if len(videos) > 1:
        raise InputError(f"{len(videos)} videos in one row; give each a row, or use messages")
    frames = [
        Picture(frame, ONE_TILE)
        for video in videos
        for frame in read_video(resolve(video, root), bound=row.get("clip"))
    ]
    if not pictures and not frames:
        _check_keys(row)
    return Media(tuple(pictures), tuple(frames))


def _check_keys(row: Mapping[str, Any]) -> None:
    """Raises InputError where a row without pictures names one under a key that is not read: its picture
    would be lost without a word."""
    for key, value in row.items():
        if not isinstance(key, str) or not LIKE_A_PICTURE.search(key):
            continue
        for name in value if isinstance(value, list | tuple) else [value]:
            if isinstance(name, str) and Path(name).suffix.lower() in PICTURES:
                raise InputError(
                    f"no picture is read from the key {key!r} ({shorten(name)}); name it 'image'"
                )


def listed(row: Mapping[str, Any], *keys: str) -> list[Any]:
    """The values of the first of `keys` that has any."""
    for key in keys:
        value = row.get(key)
        values = value if isinstance(value, list | tuple) else [value]
        if found := [one for one in values if one is not None and not (isinstance(one, str) and not one)]:
            return found
    return []


def resolve(source: Any, root: Path) -> Any:
    """A source that `load_image` or a video reader takes; paths start from `root`. Raises InputError."""
    if isinstance(source, Mapping):
        content = source.get("bytes")
        source = source.get("path") if content is None else content
    if isinstance(source, str) and "://" in source and not is_url(source):
        raise InputError(f"{shorten(source)} is not on this machine; copy or mount it and give its path")
    if isinstance(source, str | PathLike) and is_path(source):
        return root / source
    if isinstance(source, bytearray | memoryview):
        return bytes(source)
    if not isinstance(source, str | bytes | Image.Image | np.ndarray):
        raise InputError(f"a picture or video is a path, bytes or a mapping with them, not {shorten(source)}")
    return source


def place(turns: Sequence[Turn], media: Media) -> tuple[Message, ...]:
    """The turns with pictures for the marks of the user; a mark in an answer is text.

    The only picture, and a video, are put in front of the first user turn where no turn has a mark.
    Raises InputError where marks and pictures differ in number.
    """
    turns = _announce(turns, VIDEO_MARK, 1 if media.frames else 0)
    turns = _announce(turns, IMAGE_MARK, len(media.pictures))
    pictures = iter(media.pictures)
    return tuple(
        Message(role, tuple(_parts(text, pictures, media.frames)) if role is Role.USER else (text,))
        for role, text in turns
    )


def _announce(turns: Sequence[Turn], mark: str, count: int) -> Sequence[Turn]:
    num_marks = sum(text.count(mark) for role, text in turns if role is Role.USER)
    if num_marks == count:
        return turns
    first = next((index for index, (role, _) in enumerate(turns) if role is Role.USER), None)
    if num_marks or count > 1 or first is None:
        kind = "pictures" if mark == IMAGE_MARK else "videos"
        raise InputError(
            f"{num_marks} {mark} marks in the user's turns, but {count} {kind}: each needs one mark (to "
            "write the mark itself, use messages with a list of parts)"
        )
    role, text = turns[first]
    return [*turns[:first], (role, f"{mark}\n{text}"), *turns[first + 1 :]]


def _parts(text: str, pictures: Iterator[Picture], frames: Sequence[Picture]) -> Iterator[Part]:
    # A line break behind the mark of a video ends its last frame's line.
    for piece in re.split(f"({IMAGE_MARK}|{VIDEO_MARK}\n?)", text):
        if piece == IMAGE_MARK:
            yield next(pictures)
        elif piece.startswith(VIDEO_MARK):
            for number, frame in enumerate(frames, start=1):
                yield from (label_frame(DASHED_FRAMES, number), frame, "\n")
        elif piece:
            yield piece
