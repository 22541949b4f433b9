"""A record as questions with the answers on record: what is asked of a model to see how good it is.

A question is the conversation up to an answer, as chat would be asked it, whatever was trained on. Knows no
tokenizer, no template, no pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from internvl.data.records import Record
from internvl.errors import InputError
from internvl.processing.conversation import Conversation, Message, Part, Picture, Role
from internvl.processing.tiling import TileChoice


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Question:
    """`conversation` ends with the user; each of `references` is a right answer."""

    conversation: Conversation
    references: tuple[str, ...]

    @property
    def text(self) -> str:
        """What was asked last, `<image>` for each picture."""
        return self.conversation.messages[-1].text


def find_questions(record: Record, max_tiles: int | None = None) -> tuple[Question, ...]:
    """The questions of a record, in order; several answers to one question are together.

    Every answer of a conversation is asked for, after the recorded rounds before it. Of a preference only the
    chosen answer counts. `max_tiles` limits pictures that have no limit of their own. Raises InputError for a
    record that asks nothing.
    """
    if record.kind == "raw":
        raise InputError("text that is learnt whole asks nothing: only its loss can be measured")
    conversations = record.conversations[:1] if record.kind == "preference" else record.conversations
    found: dict[tuple[object, ...], Question] = {}
    for asked, answer in (pair for one in conversations for pair in _pairs(one)):
        if not answer:
            raise InputError(f"the answer to {asked.messages[-1].text[:80]!r} is empty")
        said = tuple((message.role, message.text) for message in asked.messages)
        before = found.setdefault(said, Question(conversation=_limited(asked, max_tiles), references=()))
        found[said] = replace(before, references=(*before.references, answer))
    if not found:
        raise InputError("no user's turn comes before an answer, so there is no question")
    return tuple(found.values())


def _pairs(conversation: Conversation) -> Iterator[tuple[Conversation, str]]:
    """Each answer that follows the user, without white space around it, and everything before it."""
    messages = conversation.messages
    for place, (asked, answer) in enumerate(pairwise(messages), start=1):
        if asked.role is Role.USER and answer.role is Role.ASSISTANT:
            yield replace(conversation, messages=messages[:place]), answer.text.strip()


def _limited(conversation: Conversation, max_tiles: int | None) -> Conversation:
    if max_tiles is None:
        return conversation
    choice = TileChoice(max_tiles=max_tiles)

    def limit(part: Part) -> Part:
        return replace(part, choice=choice) if isinstance(part, Picture) and part.choice is None else part

    messages = tuple(Message(one.role, tuple(map(limit, one.parts))) for one in conversation.messages)
    return replace(conversation, messages=messages)
