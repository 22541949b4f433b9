"""What a user may ask of a chat model, and how it becomes a conversation.

Knows no tensors: a request is a conversation, limits for its pictures, and settings of the answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any, TypeAlias, TypedDict

from internvl.errors import InputError, PromptError
from internvl.generation.sampling import Sampling
from internvl.processing.conversation import (
    IMAGE_MARK,
    Conversation,
    History,
    Picture,
    from_prompt,
    label_picture,
)
from internvl.processing.document import load_pages
from internvl.processing.messages import DASHED_FRAMES, from_messages
from internvl.processing.tiling import Detail, TileChoice
from internvl.processing.video import load_frames

Question: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A question (with `<image>` and `<video>` marks, if any), or OpenAI-style messages."""


class SamplingOptions(TypedDict, total=False):
    """Fields of `generation.sampling.Sampling`, which documents them."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None
    logprobs: int
    max_new_tokens: int
    min_new_tokens: int
    stop_ids: tuple[int, ...]
    stop: tuple[str, ...]
    num_beams: int
    length_penalty: float
    early_stopping: bool


class ChatOptions(SamplingOptions, total=False):
    """Everything `chat` takes besides the prompt and its images.

    `videos` and `documents` (PDF) become pictures; `history` is `Reply.history` or pairs of strings as in
    the released code, then with the pictures of all rounds in `images`. `system` replaces the model's
    system message. `max_tiles`, `min_tiles`, `thumbnail`, `detail` hold for every picture, `total_tiles`
    is shared by them.
    `num_segments`, `fps`, `bound` (seconds) choose frames; `frame_label` is "Frame-{k}: " unless given.
    `keep_tags` leaves `<ref>` and `<box>` in the text that is streamed.
    """

    videos: Sequence[Any]
    documents: Sequence[Any]
    history: Conversation | History | None
    system: str | None
    max_tiles: int | None
    min_tiles: int | None
    thumbnail: bool | None
    detail: Detail | None
    total_tiles: int | None
    num_segments: int | None
    fps: float | None
    bound: tuple[float, float] | None
    frame_label: str
    keep_tags: bool


VIDEO_MARK = "<video>"


@dataclass(frozen=True, slots=True)
class Request:
    """One thing to be answered."""

    conversation: Conversation
    sampling: Mapping[str, Any]
    total_tiles: int | None = None
    keep_tags: bool = False


def read_request(prompt: Question, images: Any, options: Mapping[str, Any]) -> Request:
    """The arguments of `chat` as a request. Videos and documents are decoded, pictures not yet.

    Raises InputError for options that do not exist, PromptError for marks and pictures that disagree.
    """
    options = dict(options)
    unknown = options.keys() - ChatOptions.__annotations__.keys()
    if unknown:
        known = ", ".join(sorted(ChatOptions.__annotations__))
        raise InputError(f"unknown option {', '.join(sorted(unknown))}; there are {known}")
    names = {item.name for item in fields(Sampling)}
    return Request(
        conversation=_conversation(prompt, as_list(images), options),
        sampling={name: value for name, value in options.items() if name in names},
        total_tiles=options.get("total_tiles"),
        keep_tags=options.get("keep_tags", False),
    )


def as_list(sources: Any) -> list[Any]:
    """One source or several as a list; None and () hold none."""
    if sources is None:
        return []
    return list(sources) if isinstance(sources, list | tuple) else [sources]


def _conversation(prompt: Question, images: list[Any], options: Mapping[str, Any]) -> Conversation:
    history = options.get("history")
    if isinstance(prompt, str):
        new = _from_text(prompt, images, history, options)
    elif images or options.get("videos") or options.get("documents"):
        raise InputError("messages hold their own pictures: put them into the content, not into `images`")
    elif history is not None and not isinstance(history, Conversation):
        raise InputError("messages hold their own history: put earlier rounds into the list")
    else:
        readers = {"read_video": _video_reader(options), "read_document": _read_document}
        new = from_messages(prompt, frame_label=options.get("frame_label", DASHED_FRAMES), **readers)
    if isinstance(history, Conversation):
        new = Conversation((*history.messages, *new.messages), new.system or history.system)
    return new if options.get("system") is None else replace(new, system=options["system"])


def _from_text(text: str, images: list[Any], history: Any, options: Mapping[str, Any]) -> Conversation:
    choice = TileChoice(
        **{name: options.get(name) for name in ("max_tiles", "min_tiles", "thumbnail", "detail")}
    )
    pages = [page for source in as_list(options.get("documents")) for page in _read_document(source)]
    pictures = [_chosen(source, choice) for source in (*images, *pages)]
    clips = [_video_reader(options)(source) for source in as_list(options.get("videos"))]
    if clips:
        text, pictures = _lay_out(text, pictures, clips, options.get("frame_label", DASHED_FRAMES))
    return from_prompt(text, pictures, None if isinstance(history, Conversation) else history)


def _chosen(source: Any, choice: TileChoice) -> Picture:
    if isinstance(source, Picture):
        return source
    return Picture(source, choice if choice != TileChoice() else None)


def _lay_out(
    text: str, pictures: list[Picture], clips: Sequence[Sequence[Any]], frame_label: str
) -> tuple[str, list[Picture]]:
    """Text in which every `<video>` became its frames, and all pictures in the order of their marks.

    What has no mark is put in front: pictures first, then videos.
    """
    num_marks = text.count(VIDEO_MARK)
    if num_marks == 0:
        text, num_marks = VIDEO_MARK * len(clips) + text, len(clips)
    if num_marks != len(clips):
        raise PromptError(
            f"{num_marks} {VIDEO_MARK} marks, but {len(clips)} videos: one for each, or no mark at all"
        )
    if pictures and IMAGE_MARK not in text:
        labels = [label_picture(k, len(pictures)) for k in range(1, len(pictures) + 1)]
        text = "".join(f"{label}{IMAGE_MARK}\n" for label in labels) + text
    waiting, frames = iter(pictures), iter(clips)
    pieces, ordered = [], []
    for piece in re.split(f"({IMAGE_MARK}|{VIDEO_MARK}\n?)", text):
        if piece.startswith(VIDEO_MARK):
            clip = next(frames)
            ordered += [Picture(frame, TileChoice(max_tiles=1)) for frame in clip]
            piece = "".join(f"{frame_label.format(k=k)}{IMAGE_MARK}\n" for k in range(1, len(clip) + 1))
        elif piece == IMAGE_MARK:
            ordered += list(islice(waiting, 1))
        pieces.append(piece)
    return "".join(pieces), [*ordered, *waiting]


def _video_reader(options: Mapping[str, Any]) -> Callable[..., Sequence[Any]]:
    chosen = {
        name: options[name] for name in ("num_segments", "fps", "bound") if options.get(name) is not None
    }

    def read(source: Any, **own: Any) -> Sequence[Any]:
        if isinstance(source, list | tuple):
            return source
        return load_frames(source, **{**chosen, **own})

    return read


def _read_document(source: Any, **own: Any) -> Sequence[Any]:
    if isinstance(source, list | tuple):
        return source
    return load_pages(source, **own)
