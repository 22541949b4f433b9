"""What a user may ask of a chat model, and how it becomes a conversation.

Knows no tensors: a request is a conversation, limits for its pictures, and settings of the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias, TypedDict

from internvl.api.media import MediaReader, as_frames, lay_out
from internvl.errors import InputError
from internvl.generation.sampling import Sampling
from internvl.processing.conversation import (
    IMAGE_MARK,
    Conversation,
    History,
    Message,
    Part,
    Picture,
    as_turns,
    from_prompt,
)
from internvl.processing.image import ImageLimits
from internvl.processing.messages import DASHED_FRAMES, from_messages
from internvl.processing.tiling import Detail, TileChoice

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
    is shared by them. `num_segments`, `fps`, `bound` (seconds) choose frames, each of at most `frame_tiles`
    tiles (1) and announced by `frame_label` ("Frame-{k}: "); `pages` (from 1) and `dpi` choose pages.
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
    frame_tiles: int
    frame_label: str
    pages: Sequence[int] | None
    dpi: float
    keep_tags: bool


CHOICE = ("max_tiles", "min_tiles", "thumbnail", "detail")
VIDEO = ("num_segments", "fps", "bound")
DOCUMENT = ("pages", "dpi")


@dataclass(frozen=True, slots=True)
class Request:
    """One thing to be answered."""

    conversation: Conversation
    sampling: Mapping[str, Any]
    total_tiles: int | None = None
    keep_tags: bool = False


def read_request(question: Question, images: Any, options: Mapping[str, Any], limits: ImageLimits) -> Request:
    """The arguments of `chat` as a request. Videos and documents are decoded, pictures not yet.

    Raises InputError for options that do not exist, PromptError for marks and pictures that disagree.
    """
    unknown = options.keys() - ChatOptions.__annotations__.keys()
    if unknown:
        known = ", ".join(sorted(ChatOptions.__annotations__))
        raise InputError(f"unknown option {', '.join(sorted(unknown))}; there are {known}")
    system = options.get("system")
    if system is not None and not isinstance(system, str):
        raise InputError(f"system must be a string, not {type(system).__name__}")
    reader = MediaReader(limits, _given(options, VIDEO), _given(options, DOCUMENT))
    conversation = _conversation(question, as_list(images), options, reader)
    return Request(
        conversation=conversation if system is None else replace(conversation, system=system),
        sampling=_given(options, [item.name for item in fields(Sampling)]),
        total_tiles=options.get("total_tiles"),
        keep_tags=options.get("keep_tags", False),
    )


def as_list(sources: Any) -> list[Any]:
    """One source or several as a list; None and () hold none."""
    if sources is None:
        return []
    return list(sources) if isinstance(sources, list | tuple) else [sources]


def _given(options: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The options of these names that are not None."""
    return {name: options[name] for name in names if options.get(name) is not None}


def _conversation(
    question: Question, images: list[Any], options: Mapping[str, Any], reader: MediaReader
) -> Conversation:
    history = options.get("history")
    if isinstance(question, str):
        new = _from_text(question, images, options, reader)
    elif images or options.get("videos") or options.get("documents"):
        raise InputError("messages hold their own pictures: put them into the content, not into `images`")
    elif history is not None and not isinstance(history, Conversation):
        raise InputError("messages hold their own history: put earlier rounds into the list")
    else:
        label = options.get("frame_label", DASHED_FRAMES)
        new = from_messages(question, frame_label=label, read_video=reader.frames, read_document=reader.pages)
    new = _with_choice(new, TileChoice(**_given(options, CHOICE)))
    if not isinstance(history, Conversation):
        return new
    return Conversation((*history.messages, *new.messages), new.system or history.system)


def _from_text(text: str, images: list[Any], options: Mapping[str, Any], reader: MediaReader) -> Conversation:
    """A question with its pictures, pages and videos. String histories come first with theirs."""
    history = options.get("history")
    pairs = [] if isinstance(history, Conversation) else as_turns(history)
    pages = [page for source in as_list(options.get("documents")) for page in reader.pages(source)]
    pictures = [one if isinstance(one, Picture) else Picture(one) for one in (*images, *pages)]
    clips = [
        as_frames(reader.frames(source), options.get("frame_tiles", 1))
        for source in as_list(options.get("videos"))
    ]
    if clips:
        num_before = sum(asked.count(IMAGE_MARK) for asked, _ in pairs)
        text, new = lay_out(text, pictures[num_before:], clips, options.get("frame_label", DASHED_FRAMES))
        pictures = [*pictures[:num_before], *new]
    return from_prompt(text, pictures, pairs)


def _with_choice(conversation: Conversation, choice: TileChoice) -> Conversation:
    """The same, with `choice` for every picture that has none of its own."""
    if choice == TileChoice():
        return conversation

    def chosen(part: Part) -> Part:
        return replace(part, choice=choice) if isinstance(part, Picture) and part.choice is None else part

    messages = [Message(one.role, tuple(map(chosen, one.parts))) for one in conversation.messages]
    return replace(conversation, messages=tuple(messages))
