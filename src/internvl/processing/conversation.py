"""A conversation as frozen values, made from a prompt with `<image>` marks.

Knows no template, no tokenizer and no file: a picture keeps whatever source it came with. `messages` makes
conversations from role-and-content messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, TypeAlias

from internvl.errors import PromptError
from internvl.processing.image import ImageSource
from internvl.processing.tiles import Tiles
from internvl.processing.tiling import TileChoice

IMAGE_MARK = "<image>"
IMAGE_LABEL = "Image-{k}: "

PictureSource: TypeAlias = ImageSource | Tiles


class Role(Enum):
    """Who speaks."""

    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One run of vision tokens: anything `image.load_image` reads, or tiles made already.

    `choice` holds the caller's limits for this picture; it has no meaning for ready tiles.
    """

    source: PictureSource
    choice: TileChoice | None = None


Part: TypeAlias = str | Picture


@dataclass(frozen=True, slots=True)
class Message:
    """What one side said. A literal `<image>` in a string is text; pictures are parts of their own."""

    role: Role
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if self.role is Role.ASSISTANT and any(isinstance(part, Picture) for part in self.parts):
            raise PromptError("an assistant message holds a picture; only user messages may")

    @property
    def text(self) -> str:
        """The parts as one string, `<image>` for each picture."""
        return "".join(part if isinstance(part, str) else IMAGE_MARK for part in self.parts)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order; `system` None leaves the model's own system message.

    Roles may follow one another in any order: templates concatenate. To be answered, the last message
    must be the user's.
    """

    messages: tuple[Message, ...]
    system: str | None = None

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures, in the order of their slots."""
        return tuple(part for message in self.messages for part in message.parts if isinstance(part, Picture))

    def with_answer(self, text: str) -> Conversation:
        """The same, and the assistant's answer to it."""
        return replace(self, messages=(*self.messages, Message(Role.ASSISTANT, (text,))))


History: TypeAlias = Sequence[tuple[str, str]]
"""Pairs of question and answer, the questions with their `<image>` marks."""


def from_prompt(
    text: str,
    pictures: Iterable[PictureSource | Picture] = (),
    history: History | None = None,
    *,
    system: str | None = None,
) -> Conversation:
    """The string form of the released `chat`: `<image>` marks take the pictures in order, history first.

    If the question has no mark, the pictures that history leaves over are put in front of it: `<image>`
    and a line break for the only picture, else `Image-1: <image>`, `Image-2: <image>` and so on, a line each.
    Raises `PromptError` where marks and pictures disagree in number.
    """
    if not isinstance(pictures, Iterable) or isinstance(pictures, str | bytes):
        raise PromptError(f"pictures must be a list, also where there is one: not {shorten(pictures)}")
    turns = [*as_turns(history), *as_turns([(text, "")])]
    given = [item if isinstance(item, Picture) else Picture(item) for item in pictures]
    num_before = sum(question.count(IMAGE_MARK) for question, _ in turns[:-1])
    if IMAGE_MARK not in text and len(given) > num_before:
        text = _announce(range(num_before + 1, len(given) + 1), len(given)) + text
    if not text:
        raise PromptError("the question is empty and has no picture; ask something")
    num_marks = num_before + text.count(IMAGE_MARK)
    if num_marks != len(given):
        raise PromptError(
            f"{num_marks} {IMAGE_MARK} marks in question and history, but {len(given)} pictures: pass the "
            "pictures of all rounds in order, one for each mark (to write the mark itself, use messages)"
        )
    remaining = iter(given)
    messages: list[Message] = []
    for question, answer in (*turns[:-1], (text, None)):
        messages.append(Message(Role.USER, _fill_marks(question, remaining)))
        if answer is not None:
            messages.append(Message(Role.ASSISTANT, (answer,) if answer else ()))
    return Conversation(tuple(messages), system)


def as_turns(history: Any) -> list[tuple[str, str]]:
    """The rounds of a `History`, none for None. Raises `PromptError` for anything else."""
    if not isinstance(history, Sequence | None):
        raise PromptError(f"history must be a list of pairs of question and answer, not {shorten(history)}")
    for turn in history or ():
        is_pair = isinstance(turn, list | tuple) and len(turn) == 2
        if not is_pair or not all(isinstance(side, str) for side in turn):
            raise PromptError(
                f"history must be pairs of question and answer, both strings, not {shorten(turn)}"
            )
    return [(question, answer) for question, answer in history or ()]


def label_picture(number: int, total: int) -> str:
    """What stands before a picture: nothing if it is the only one, else its number."""
    return IMAGE_LABEL.format(k=number) if total > 1 else ""


def label_frame(label: str, number: int) -> str:
    """What stands before a frame of a video: `label` with its number for every `{k}`, as it is without one.

    Other braces raise `PromptError`: a label is no format string, since strangers may send it.
    """
    if not isinstance(label, str) or set("{}") & set(label.replace("{k}", "")):
        raise PromptError(f'a frame label is a string such as "Frame-{{k}}: ", not {shorten(label)}')
    return label.replace("{k}", str(number))


def _announce(numbers: Iterable[int], total: int) -> str:
    return "".join(f"{label_picture(number, total)}{IMAGE_MARK}\n" for number in numbers)


def _fill_marks(text: str, pictures: Iterable[Picture]) -> tuple[Part, ...]:
    """The text with the next pictures in place of its marks."""
    first, *others = text.split(IMAGE_MARK)
    parts: list[Part] = [first]
    for following, picture in zip(others, pictures, strict=False):
        parts += [picture, following]
    return tuple(part for part in parts if part != "")


def shorten(value: object) -> str:
    """A value as an error message shows it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
