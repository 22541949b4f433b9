"""Conversations from messages of role and content, as the OpenAI protocol writes them.

What is not supported is refused by name. Knows no template and no file: videos and documents become pictures
through the readers that are handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from PIL import Image

from internvl.errors import ImageError, PromptError
from internvl.processing.conversation import (
    Conversation,
    Message,
    Part,
    Picture,
    Role,
    label_frame,
    label_picture,
    shorten,
)
from internvl.processing.tiling import TileChoice

DASHED_FRAMES = "Frame-{k}: "
"""How frames are announced, as in the training of the released models; `Frame{k}: ` is also in use."""

Reader: TypeAlias = Callable[..., Sequence[Image.Image]]
"""A video or document and its options to pictures (`video.load_frames`, `document.load_pages`)."""

_CHOICE = ("max_tiles", "min_tiles", "thumbnail", "detail")
_VIDEO = ("num_segments", "bound", "fps")
_DOCUMENT = ("pages", "dpi")
_PART_FIELDS: Mapping[str, tuple[str, ...]] = {
    "text": ("text",),
    "image": ("image", *_CHOICE),
    "image_url": ("image_url", *_CHOICE),
    "video": ("video", *_VIDEO, "max_tiles"),
    "document": ("document", *_DOCUMENT, *_CHOICE),
}
_MESSAGE_FIELDS = ("role", "content")
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class _Pictures:
    """What one part brought: numbered over the conversation, or frames numbered over the video."""

    pictures: tuple[Picture, ...]
    are_frames: bool = False


_Item: TypeAlias = str | _Pictures


def from_messages(
    messages: Sequence[Mapping[str, Any]],
    *,
    frame_label: str = DASHED_FRAMES,
    read_video: Reader | None = None,
    read_document: Reader | None = None,
) -> Conversation:
    """Messages such as `{"role": "user", "content": [{"type": "image", "image": source}, ...]}`.

    Content is a string or a list of parts: text, image, image_url, video (num_segments, bound or fps choose
    the frames, each of one tile unless max_tiles says more), document (an image a page; pages, dpi). Each
    picture becomes `<image>` and a line break at its place; where the conversation has
    several images they are announced as `Image-1: `, `Image-2: ` throughout. A literal `<image>` in text
    stays text. One system message may come first. Raises `PromptError` naming what is wrong and allowed.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise PromptError(f"messages must be a non-empty list of role and content, not {shorten(messages)}")
    readers = {"video": read_video, "document": read_document}
    system: str | None = None
    rows: list[tuple[Role, list[_Item]]] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        role, content = _check_message(message, where)
        items = list(_parse_content(content, where, readers))
        if role == "system":
            system = _system_text(items, index, where)
        else:
            rows.append((Role(role), items))
    if not rows:
        raise PromptError("there is only a system message; add one of the user")
    return Conversation(tuple(_label_pictures(rows, frame_label)), system)


def _check_message(message: object, where: str) -> tuple[str, object]:
    if not isinstance(message, Mapping):
        raise PromptError(
            f"{where} must be a mapping with {_listed(_MESSAGE_FIELDS)}, not {shorten(message)}"
        )
    _check_fields(message, _MESSAGE_FIELDS, where)
    role = message.get("role")
    if role not in _ROLES:
        raise PromptError(f"{where}: unknown role {role!r}; allowed are {_listed(_ROLES)}")
    if message.get("content") is None:
        raise PromptError(f"{where} has no content; give a string or a list of parts")
    return str(role), message["content"]


def _check_fields(mapping: Mapping[str, Any], allowed: Sequence[str], where: str) -> None:
    unknown = [repr(key) for key in mapping if key not in allowed]
    if unknown:
        raise PromptError(f"{where}: unknown field {', '.join(unknown)}; allowed are {_listed(allowed)}")


def _system_text(items: Sequence[_Item], index: int, where: str) -> str:
    if index:
        raise PromptError(f"{where}: the system message must be the first one")
    if not all(isinstance(item, str) for item in items):
        raise PromptError(f"{where}: a system message holds text only")
    return "".join(item for item in items if isinstance(item, str))


def _parse_content(content: object, where: str, readers: Mapping[str, Reader | None]) -> Iterator[_Item]:
    if isinstance(content, str):
        yield content
        return
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise PromptError(f"{where}: content must be a string or a list of parts, not {shorten(content)}")
    for index, part in enumerate(content):
        place = f"{where}.content[{index}]"
        if not isinstance(part, Mapping):
            raise PromptError(f"{place} must be a mapping with a type, not {shorten(part)}")
        kind = part.get("type")
        if not isinstance(kind, str) or kind not in _PART_FIELDS:
            raise PromptError(f"{place}: unknown type {kind!r}; allowed are {_listed(tuple(_PART_FIELDS))}")
        _check_fields(part, ("type", *_PART_FIELDS[kind]), place)
        if part.get(kind) is None:
            raise PromptError(f"{place} has no {kind!r}, which a part of this type needs")
        yield _parse_part(kind, part, place, readers)


def _parse_part(
    kind: str, part: Mapping[str, Any], place: str, readers: Mapping[str, Reader | None]
) -> _Item:
    value = part[kind]
    if kind == "text":
        if not isinstance(value, str):
            raise PromptError(f"{place}: text must be a string, not {shorten(value)}")
        return value
    choice = _choice(part, place)
    if kind == "image":
        return _Pictures((Picture(value, choice),))
    if kind == "image_url":
        return _Pictures((_picture_of_url(value, part, place),))
    options = {key: part[key] for key in (*_VIDEO, *_DOCUMENT) if part.get(key) is not None}
    if kind == "video" and choice is None:
        choice = TileChoice(max_tiles=1)
    pictures = _read(kind, value, options, place, readers)
    return _Pictures(tuple(Picture(one, choice) for one in pictures), are_frames=kind == "video")


def _picture_of_url(value: object, part: Mapping[str, Any], place: str) -> Picture:
    """`{"url": ..., "detail": ...}` as the protocol has it, or just the address."""
    fields = {"url": value} if isinstance(value, str) else value
    if not isinstance(fields, Mapping) or not isinstance(fields.get("url"), str):
        raise PromptError(
            f"{place}: image_url must be an address or a mapping with url, not {shorten(value)}"
        )
    _check_fields(fields, ("url", *_CHOICE), f"{place}.image_url")
    return Picture(fields["url"], _choice({**part, **fields}, place))


def _choice(fields: Mapping[str, Any], place: str) -> TileChoice | None:
    chosen = {key: fields[key] for key in _CHOICE if fields.get(key) is not None}
    try:
        return TileChoice(**chosen) if chosen else None
    except ImageError as reason:
        raise PromptError(f"{place}: {reason}") from reason


def _read(
    kind: str, source: object, options: Mapping[str, Any], place: str, readers: Mapping[str, Reader | None]
) -> Sequence[Any]:
    """The pictures of a video or document; a list of pictures is taken as it is."""
    if isinstance(source, list | tuple):
        if options or not source:
            raise PromptError(
                f"{place}: a {kind} given as pictures takes no {', '.join(options) or 'empty list'}"
            )
        return source
    read = readers[kind]
    if read is None:
        raise PromptError(f"{place}: no reader for a {kind} here; hand over its pictures as a list")
    pictures = read(source, **options)
    if not pictures:
        raise PromptError(f"{place}: the {kind} has no pictures")
    return pictures


def _label_pictures(rows: Sequence[tuple[Role, list[_Item]]], frame_label: str) -> Iterator[Message]:
    groups = [item for _, items in rows for item in items if isinstance(item, _Pictures)]
    total = sum(len(group.pictures) for group in groups if not group.are_frames)
    number = 0
    for role, items in rows:
        parts: list[Part] = []
        for item in items:
            if isinstance(item, str):
                parts += [item] if item else []
                continue
            if parts and isinstance(parts[-1], str) and not parts[-1][-1:].isspace():
                parts.append("\n")
            for index, picture in enumerate(item.pictures, start=1):
                number += not item.are_frames
                label = label_frame(frame_label, index) if item.are_frames else label_picture(number, total)
                parts += [label, picture, "\n"]
        if role is Role.USER and not any(parts):
            raise PromptError("a user message is empty; leave it out or write something")
        yield Message(role, tuple(part for part in parts if part != ""))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
