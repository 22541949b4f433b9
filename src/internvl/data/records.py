"""A row of a data file as whole conversations about the same pictures.

Forms, the first that a row has:

    conversations   [{"from": "system" | "human" | "gpt" | "pretrain", "value": text}, ...] (InternVL)
    messages        [{"role": ..., "content": text or parts}, ...] (OpenAI)
    chosen          with question and rejected: a preference (MPO); ref_chosen_logps and ref_rejected_logps
                    are log-probabilities under the reference model, where stored
    pairs           [[question, answer], ...]
    answers         a list, or `answer`, with question
    captions        a list, or `caption`, or texts by language ("en", "zh", ...); question is optional
    text            a caption where there is a picture, else text that is learnt whole

Pictures: `image` or `images`, one or a list; `video`, with `clip` [start, end] in seconds. Each is a path
from the root of the data set, bytes, or {"bytes": ..., "path": ...}. Knows no tokenizer, no template, no
pixels.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, nan
from pathlib import Path
from typing import Any, Literal

from internvl.data.caption_questions import LANGUAGES, draw_question
from internvl.data.media import FrameReader, Media, find_media, listed, place, resolve
from internvl.errors import InputError
from internvl.processing.conversation import Conversation, Part, Role, shorten
from internvl.processing.messages import from_messages

MAX_ANSWERS = 256
"""Of one row; each is a sequence of its own."""

ROLES: Mapping[str, Role] = {
    "human": Role.USER,
    "user": Role.USER,
    "gpt": Role.ASSISTANT,
    "assistant": Role.ASSISTANT,
}
QUESTION_KEYS = ("question", "prompt")

Kind = Literal["conversation", "answers", "preference", "raw"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """All conversations hold the same pictures in the same order.

    "conversation": one, every answer is learnt. "answers": one answer each. "preference": the chosen answer,
    then the rejected one; `references` are their log-probabilities under the reference model. "raw": one
    user message whose text is learnt whole, without a template.
    """

    kind: Kind
    conversations: tuple[Conversation, ...]
    references: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordReader:
    """How the rows of a data set are read. `draw` decides what is left to chance; without it
    nothing is, and the first question stands for all.

    `language` keeps the captions of one language; None takes all. `questions` replace the built-in ones for
    captions without a question.
    """

    root: Path
    read_video: FrameReader
    draw: random.Random | None
    language: str | None = None
    questions: tuple[str, ...] = ()

    def read(self, row: Mapping[str, Any]) -> Record:
        """Raises InputError that says what is wrong with the row."""
        has_turns = row.get("conversations") is not None or row.get("messages") is not None
        if has_turns and row.get("chosen") is not None:
            raise InputError(
                "a preference has a question, chosen and rejected, not messages or conversations"
            )
        if has_turns and row.get("conversations") is None:
            return self._messages(row)
        media = find_media(row, self.root, self.read_video)
        if row.get("conversations") is not None:
            return _conversation(_turns(row, "conversations", "from", "value"), media)
        if row.get("chosen") is not None:
            return _preference(row, media)
        return self._answers(row, media)

    def _messages(self, row: Mapping[str, Any]) -> Record:
        """Contents that are all strings hold marks, as the other forms do."""
        messages = row["messages"]
        if not isinstance(messages, Sequence) or not all(isinstance(one, Mapping) for one in messages):
            raise InputError(f"messages must be a list of role and content, not {shorten(messages)}")
        if all(isinstance(one.get("content"), str) for one in messages):
            media = find_media(row, self.root, self.read_video)
            return _conversation(_turns(row, "messages", "role", "content"), media)
        conversation = from_messages(_with_images(messages, row), read_video=self._read_video)
        resolved = [
            replace(message, parts=tuple(map(self._resolved, message.parts)))
            for message in conversation.messages
        ]
        return _record("conversation", [replace(conversation, messages=tuple(resolved))])

    def _read_video(self, source: Any, **options: Any) -> Sequence[Any]:
        return self.read_video(resolve(source, self.root), **options)

    def _resolved(self, part: Part) -> Part:
        """Frames, and whatever else is no name of a file, stay as they are."""
        if isinstance(part, str) or not isinstance(part.source, str | Mapping):
            return part
        return replace(part, source=resolve(part.source, self.root))

    def _answers(self, row: Mapping[str, Any], media: Media) -> Record:
        pairs = self._pairs(row, has_pictures=bool(media.pictures or media.frames))
        if pairs is None:
            if (text := _text(row, "text")) is None:
                raise InputError(self._no_form(row))
            return _record("raw", [Conversation(place([(Role.USER, text)], media))])
        if not 1 <= len(pairs) <= MAX_ANSWERS:
            raise InputError(f"{len(pairs)} answers in one row, allowed are 1 to {MAX_ANSWERS}")
        system = _text(row, "system")
        return _record("answers", [_single(pair, media, system) for pair in pairs])

    def _pairs(self, row: Mapping[str, Any], has_pictures: bool) -> list[tuple[str, str]] | None:
        """Questions with their answers; None for a row without any."""
        if row.get("pairs") is not None:
            return [_pair(pair, index) for index, pair in enumerate(_list(row["pairs"], "pairs"))]
        question = _text(row, *QUESTION_KEYS)
        answers = _texts(row, "answers", "answer")
        if answers and question is None:
            raise InputError("an answer without a question; name it 'caption' if it describes the picture")
        if answers and question is not None:
            return [(question, answer) for answer in answers]
        by_language = captions_of(row, self.language, has_pictures=has_pictures)
        asked = {key: question or draw_question(self.draw, key, self.questions) for key in by_language}
        return [(asked[key], text) for key, texts in by_language.items() for text in texts] or None

    def _no_form(self, row: Mapping[str, Any]) -> str:
        if _text(row, *QUESTION_KEYS) is not None:
            return f"a question without an answer in the keys {', '.join(map(repr, list(row)[:12]))}"
        captions = "caption(s)" if self.language is None else f"captions in {self.language!r}"
        return (
            f"nothing to learn in the keys {', '.join(map(repr, list(row)[:12]))}: a row has conversations, "
            f"messages, chosen and rejected, pairs, question and answer(s), {captions} or text"
        )


def _record(kind: Kind, conversations: Sequence[Conversation]) -> Record:
    return Record(kind=kind, conversations=tuple(conversations), references=(None,) * len(conversations))


def _turns(row: Mapping[str, Any], key: str, role_key: str, text_key: str) -> list[tuple[str, str]]:
    """Speaker and text of every turn under `key`."""
    turns = []
    for index, turn in enumerate(_list(row[key], key)):
        role, text = (turn.get(role_key), turn.get(text_key)) if isinstance(turn, Mapping) else (None, None)
        if not isinstance(role, str) or not isinstance(text, str):
            raise InputError(f"turn {index} needs {role_key!r} and {text_key!r}, both text: {shorten(turn)}")
        turns.append((role, text))
    return turns


def _conversation(turns: Sequence[tuple[str, str]], media: Media) -> Record:
    """A published record: an optional system turn, then those of both sides; or one "pretrain" turn."""
    if [role for role, _ in turns] == ["pretrain"]:
        return _record("raw", [Conversation(place([(Role.USER, turns[0][1])], media))])
    system = turns[0][1] if turns and turns[0][0] == "system" else None
    spoken = list(turns if system is None else turns[1:])
    if unknown := [role for role, _ in spoken if role not in ROLES]:
        raise InputError(
            f"unknown speaker {unknown[0]!r}; known are {', '.join(ROLES)}, system first, or pretrain alone"
        )
    messages = place([(ROLES[role], text) for role, text in spoken], media)
    return _record("conversation", [Conversation(messages, system)])


def _single(pair: tuple[str, str], media: Media, system: str | None) -> Conversation:
    question, answer = pair
    return Conversation(place([(Role.USER, question), (Role.ASSISTANT, answer)], media), system)


def _preference(row: Mapping[str, Any], media: Media) -> Record:
    question = _text(row, *QUESTION_KEYS)
    chosen, rejected = _text(row, "chosen"), _text(row, "rejected")
    if question is None or chosen is None or rejected is None:
        raise InputError("a preference needs question, chosen and rejected")
    if chosen == rejected:
        raise InputError(f"chosen and rejected are the same answer: {shorten(chosen)}")
    references = tuple(_number(row, key) for key in ("ref_chosen_logps", "ref_rejected_logps"))
    if None in references and references != (None, None):
        raise InputError("ref_chosen_logps and ref_rejected_logps belong together; one is missing")
    system = _text(row, "system")
    return Record(
        kind="preference",
        conversations=tuple(_single((question, answer), media, system) for answer in (chosen, rejected)),
        references=references,
    )


def _pair(pair: Any, index: int) -> tuple[str, str]:
    if isinstance(pair, Mapping):
        pair = [pair.get("question"), pair.get("answer")]
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise InputError(f"pairs[{index}] must be [question, answer], not {shorten(pair)}")
    return _string(pair[0], f"pairs[{index}][0]"), _string(pair[1], f"pairs[{index}][1]")


def _with_images(messages: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Parts {"type": "image"} without a picture take those of the row in order."""
    remaining = deque(listed(row, "images", "image"))
    filled = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list | tuple):
            parts = [
                {**part, "image": remaining.popleft()} if _is_open_image(part) and remaining else part
                for part in content
            ]
            message = {**message, "content": parts}
        filled.append(message)
    if remaining:
        raise InputError(f"{len(remaining)} pictures of the row have no part of type 'image' in messages")
    return filled


def _is_open_image(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "image" and part.get("image") is None


def captions_of(
    row: Mapping[str, Any], language: str | None, *, has_pictures: bool = True
) -> dict[str, list[str]]:
    """The captions of a row by language; those of one language, or of all where it is None.

    Captions that name no language are in the one asked for, else English. Those by language stand under its
    code; what stands there and is no text is none. The text of a row is a caption where it has pictures.
    """
    named = language or "en"
    if captions := _texts(row, "captions", "caption"):
        return {named: captions}
    if not has_pictures:
        return {}
    keys = [key for key in row if (key in LANGUAGES if language is None else key == language)]
    if found := {key: _texts(row, key) for key in keys if _holds_texts(row, key)}:
        return found
    return {named: captions} if (captions := _texts(row, "text")) else {}


def _holds_texts(row: Mapping[str, Any], key: str) -> bool:
    values = list(listed(row, key))
    return bool(values) and all(isinstance(value, str) for value in values)


def _list(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or not value:
        raise InputError(f"{name} must be a list that is not empty, not {shorten(value)}")
    return value


def _texts(row: Mapping[str, Any], *keys: str) -> list[str]:
    return [_string(value, keys[0]) for value in listed(row, *keys)]


def _text(row: Mapping[str, Any], *keys: str) -> str | None:
    """The first text of these keys; an empty cell of a table is none."""
    return next(iter(_texts(row, *keys)), None)


def _string(value: Any, name: str) -> str:
    """Numbers are written out: answers often are."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise InputError(f"{name} must be text, not {shorten(value)}")
    return value


def _number(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = nan
    if not isfinite(number):
        raise InputError(f"{key} must be a number, not {shorten(value)}")
    return number
