"""How a conversation becomes text: one function that writes any of the released templates.

Knows no tokenizer and no pictures beyond how many slots each one takes. Where everything came from -
what a user wrote, what the assistant is trained on, where pictures go - is told in character spans.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from internvl.chat_templates import TEMPLATES, Template
from internvl.config import IMG_CONTEXT, IMG_END, IMG_START
from internvl.errors import PromptError, UnknownNameError
from internvl.processing.added_tokens import Span
from internvl.processing.conversation import IMAGE_MARK, Message, Picture, Role


@dataclass(frozen=True, slots=True)
class Rendered:
    """`text`, and spans of characters in it.

    `answers`: assistant texts with the mark that ends them. `pictures`: the run of each picture, its
    tags included. `plain`: what came from outside, where special tokens must not be recognised.
    """

    text: str
    answers: tuple[Span, ...]
    pictures: tuple[Span, ...]
    plain: tuple[Span, ...]


def find_template(name: str) -> Template:
    """The template of that name. Raises `UnknownNameError` with those there are."""
    if name not in TEMPLATES:
        raise UnknownNameError(f"no template {name!r}; there are {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


@dataclass(slots=True)
class _Page:
    """The text so far, and the spans found on the way."""

    slots: Sequence[int] | None
    tags: tuple[str, str]
    pieces: list[str] = field(default_factory=list)
    length: int = 0
    answers: list[Span] = field(default_factory=list)
    pictures: list[Span] = field(default_factory=list)
    plain: list[Span] = field(default_factory=list)

    def write(self, text: str, spans: list[Span] | None = None) -> None:
        """Append `text`, and its place to `spans`."""
        start = self.length
        self.pieces.append(text)
        self.length += len(text)
        if spans is not None and text:
            spans.append((start, self.length))

    def write_parts(self, parts: Iterable[str | Picture]) -> None:
        for part in parts:
            if isinstance(part, str):
                self.write(part, self.plain)
            elif self.slots is None:
                self.write(IMAGE_MARK, self.pictures)
            else:
                start, end = self.tags
                self.write(start + IMG_CONTEXT * self.slots[len(self.pictures)] + end, self.pictures)


def render(
    template: Template,
    messages: Sequence[Message],
    *,
    system: str | None = None,
    open_answer: bool = False,
    slots: Sequence[int] | None = None,
    tags: tuple[str, str] = (IMG_START, IMG_END),
) -> Rendered:
    """A conversation as the model reads it, character for character as the released code writes it.

    `system` replaces the template's message and counts as text from outside. `slots` are the vision
    tokens of each picture in order; None writes `<image>` for each. `open_answer` adds the opening of an
    assistant turn. A message without any text stays open, too. Raises `PromptError` if `slots` and
    pictures disagree in number.
    """
    num_pictures = sum(isinstance(part, Picture) for message in messages for part in message.parts)
    if slots is not None and len(slots) != num_pictures:
        raise PromptError(f"{num_pictures} pictures in the messages, but slots for {len(slots)}")
    page = _Page(slots, tags)
    page.write(template.system_opening)
    page.write(template.system_message if system is None else system, None if system is None else page.plain)
    page.write(template.system_end)
    for index, message in enumerate(messages):
        is_last = index == len(messages) - 1 and not open_answer
        _write_message(page, template, message, is_last)
    if open_answer:
        page.write(template.assistant.opening)
    return Rendered("".join(page.pieces), tuple(page.answers), tuple(page.pictures), tuple(page.plain))


def _write_message(page: _Page, template: Template, message: Message, is_last: bool) -> None:
    is_answer = message.role is Role.ASSISTANT
    turn = template.assistant if is_answer else template.user
    if is_last and is_answer and template.last_end is not None:
        turn = replace(turn, end=template.last_end)
    page.write(turn.opening)
    start = page.length
    if not any(message.parts):
        return
    page.write(turn.gap)
    page.write_parts(message.parts)
    page.write(turn.end)
    if is_answer:
        page.answers.append((start, page.length - len(turn.end) + len(turn.ending)))
