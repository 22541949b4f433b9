"""The messages of a chat request, and how they become a conversation with pictures.

Pure values: addresses of media are named here and read elsewhere. Knows no HTTP, no tensors and no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from internvl.serving.media import Kind
from internvl.serving.protocol import Parts, Strict
from internvl.serving.protocol_tools import MAX_TOOLS, ToolCall, spoken_calls

ROLES: Mapping[str, str] = {"developer": "system", "tool": "user"}
"""Roles that models do not know, as those that they do."""

TileCount = Annotated[int, Field(ge=1, le=512)]
Page = Annotated[int, Field(ge=1)]
Pages = Annotated[list[Page], Field(min_length=1, max_length=512, fail_fast=True)]
ToolCalls = Annotated[list[ToolCall], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]


class TileFields(Strict):
    """How a picture is cut. `max_dynamic_patch` is LMDeploy's name of `max_tiles`."""

    detail: Literal["low", "high", "auto"] | None = None
    max_tiles: TileCount | None = None
    min_tiles: TileCount | None = None
    thumbnail: bool | None = None
    max_dynamic_patch: TileCount | None = None

    def choice(self) -> dict[str, Any]:
        """The fields of a part of `processing.messages`."""
        chosen = {
            "detail": self.detail,
            "max_tiles": self.max_tiles or self.max_dynamic_patch,
            "min_tiles": self.min_tiles,
            "thumbnail": self.thumbnail,
        }
        return {name: value for name, value in chosen.items() if value is not None}


class ImageUrl(TileFields):
    """A data: URL, an address the server allows, or the id of an uploaded file."""

    url: str


class VideoUrl(Strict):
    """As `ImageUrl`; `num_segments` frames evenly spread, or `fps` a second, within `bound` seconds."""

    url: str
    num_segments: Annotated[int, Field(ge=1, le=1024)] | None = None
    fps: Annotated[float, Field(gt=0, le=1000)] | None = None
    bound: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=2, max_length=2)] | None = None
    max_tiles: TileCount | None = None


class FileContent(TileFields):
    """A PDF or a picture: `file_data` as a data: URL, or the id of an uploaded file."""

    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None
    pages: Pages | None = None
    dpi: Annotated[float, Field(ge=1, le=2400)] | None = None

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if (self.file_data is None) == (self.file_id is None):
            raise ValueError("a file has either file_data or file_id")
        return self


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


class VideoPart(Strict):
    type: Literal["video_url"]
    video_url: VideoUrl


class FilePart(Strict):
    type: Literal["file"]
    file: FileContent


Part = Annotated[TextPart | ImagePart | VideoPart | FilePart, Field(discriminator="type")]


class SystemMessage(Strict):
    role: Literal["system", "developer"]
    content: str | Annotated[list[TextPart], Parts]


class UserMessage(Strict):
    role: Literal["user"]
    content: str | Annotated[list[Part], Parts]


class AssistantMessage(Strict):
    """Also as an earlier answer of this server has it, so that it can be sent back as it came."""

    role: Literal["assistant"]
    content: str | Annotated[list[TextPart], Parts] | None = None
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: ToolCalls | None = None
    boxes: list[Any] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and self.tool_calls is None:
            raise ValueError("a message of the assistant has content or tool_calls")
        return self


class ToolMessage(Strict):
    """What a function that was called gave back."""

    role: Literal["tool"]
    content: str | Annotated[list[TextPart], Parts]
    tool_call_id: str


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


@dataclass(frozen=True, slots=True)
class MediaReference:
    """An address or file id of a request, not looked at yet."""

    kind: Kind
    address: str
    options: Mapping[str, Any]
    param: str


def find_media(messages: Sequence[ChatMessage]) -> list[MediaReference]:
    """Everything to be read for these messages, in order."""
    return [found for _, found in _media_parts(messages)]


def as_messages(messages: Sequence[ChatMessage], pictures: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """Messages for `processing.messages`, with the pictures of every medium in its place."""
    waiting = iter(pictures)
    return [{"role": ROLES.get(one.role, one.role), "content": _spoken(one, waiting)} for one in messages]


def _media_parts(messages: Sequence[ChatMessage]) -> Iterator[tuple[Any, MediaReference]]:
    for number, message in enumerate(messages):
        if message.content is None or isinstance(message.content, str):
            continue
        for index, part in enumerate(message.content):
            if not isinstance(part, TextPart):
                yield part, _reference(part, f"messages[{number}].content[{index}]")


def _reference(part: ImagePart | VideoPart | FilePart, place: str) -> MediaReference:
    if isinstance(part, ImagePart):
        return MediaReference("image", part.image_url.url, {}, f"{place}.image_url")
    if isinstance(part, VideoPart):
        video = part.video_url
        options = {"num_segments": video.num_segments, "fps": video.fps, "bound": video.bound}
        return MediaReference("video", video.url, _given(options), f"{place}.video_url")
    chosen = {"pages": part.file.pages, "dpi": part.file.dpi}
    address = part.file.file_id or part.file.file_data or ""
    return MediaReference("file", address, _given(chosen), f"{place}.file")


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _spoken(message: ChatMessage, pictures: Iterator[Sequence[Any]]) -> str | list[dict[str, Any]]:
    """The content as the model reads it, with the marks of calls and of what they gave."""
    if isinstance(message, ToolMessage):
        return f"<tool_response>\n{_text(message.content)}\n</tool_response>"
    if isinstance(message, AssistantMessage) and message.tool_calls:
        said = _text(message.content or "")
        return f"{said}\n{spoken_calls(message.tool_calls)}".lstrip("\n")
    return _content(message.content or "", pictures)


def _text(content: str | Sequence[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _content(content: str | Sequence[Any], pictures: Iterator[Sequence[Any]]) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    return [_part(part, pictures) for part in content]


def _part(part: Any, pictures: Iterator[Sequence[Any]]) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    found = list(next(pictures))
    if isinstance(part, ImagePart):
        return {"type": "image", "image": found[0], **part.image_url.choice()}
    if isinstance(part, VideoPart):
        return {"type": "video", "video": found, "max_tiles": part.video_url.max_tiles}
    return {"type": "document", "document": found, **part.file.choice()}
