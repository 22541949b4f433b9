"""Rows to training examples, through the processor that serves chat, so the two cannot drift apart.

Nothing is cut off and nothing is left out silently: what does not fit is an InputError, a bad sample. Knows
no model beyond its configuration, and nothing of steps.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any

import torch

from internvl.config import IMG_END, IMG_START, TilingConfig
from internvl.data.example import Branch, Example, Size, size_of
from internvl.data.media import ONE_TILE
from internvl.data.meta import DataSet
from internvl.data.pictures import PictureReader, cut_tiles, share_tiles
from internvl.data.questions import Question, find_questions
from internvl.data.records import Record, RecordReader
from internvl.data.video_frames import choose_frames, show_frames
from internvl.errors import InputError
from internvl.processing.clip import VideoLimits
from internvl.processing.conversation import Conversation, Message, Part, Picture
from internvl.processing.processor import Processor, Tokens

RAW = "plain"
"""The template without any words of its own, for text that is learnt whole."""

UNFIT: Mapping[bool, str] = {
    True: "no preference, and this objective learns from nothing else: write question, chosen and rejected",
    False: "a preference, of which this objective would learn the rejected answer too: set "
    "objective.type=Preference, or write the chosen answer alone, as 'answer'",
}
"""What is wrong with a record that is not what `Examples.preferences` takes."""


@dataclass(frozen=True, slots=True)
class _Sequence:
    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """All of an example but its pixels."""

    prefix: tuple[int, ...]
    branches: tuple[Branch, ...]
    is_preference: bool
    slots: tuple[int, ...]
    pictures: tuple[Picture, ...]
    tilings: list[TilingConfig]
    tile_counts: list[int]


class Examples:
    """Makes examples of rows. Safe under threads: nothing changes.

    `share_pictures`: all answers to a picture become branches of one example; else one of them is drawn.
    `preferences`: True takes nothing else, False none of them, None every record. `needs_references`: of
    preferences only those with log-probabilities of a reference model on record.
    """

    def __init__(
        self,
        processor: Processor,
        *,
        max_length: int,
        share_pictures: bool = True,
        preferences: bool | None = None,
        needs_references: bool = False,
        language: str | None = None,
        questions: tuple[str, ...] = (),
        videos: VideoLimits | None = None,
    ) -> None:
        """`max_length`: tokens of the longest sequence, a prefix with one branch. `language` and `questions`
        as in `RecordReader`."""
        self.processor, self.max_length, self.share_pictures = processor, max_length, share_pictures
        self.preferences, self.language, self.questions = preferences, language, questions
        self.needs_references = needs_references
        self._pictures = PictureReader(
            images=processor.limits, videos=videos or VideoLimits(), policy=processor.policy
        )
        raw = replace(processor.config, template=RAW, system_message=None)
        self._raw = Processor(raw, processor.tokenizer, max_pictures=processor.max_pictures)
        self._tags = {processor.tokenizer.token_id(tag) for tag in (IMG_START, IMG_END)}

    def measure(self, row: Mapping[str, Any], dataset: DataSet, *, seed: int = 0) -> Size:
        """The size of `example` with the same seed; of pictures and videos only headers are read.

        The seed matters where something is drawn: a question, frames of a video, one of several answers.
        Raises InputError for a bad sample.
        """
        plan = self._plan(row, dataset, seed)
        return size_of(plan.prefix, plan.branches, sum(plan.tile_counts))

    def example(
        self, row: Mapping[str, Any], dataset: DataSet, *, seed: int, key: str | None = None
    ) -> Example:
        """The example of a row, a function of the row and the seed; `key` names it, else its data set does.

        Raises InputError for a bad sample.
        """
        plan = self._plan(row, dataset, seed)
        draw = random.Random(f"pixels {seed}") if dataset.augment else None
        tiles, keys = [], []
        images = self._pictures.load(plan.pictures)
        for picture, tiling, count in zip(plan.pictures, plan.tilings, plan.tile_counts, strict=True):
            is_frame = picture.choice == ONE_TILE
            # Popped, so that a picture is freed as soon as its tiles are cut.
            tiles_N3HW, image_key = cut_tiles(images.pop(0), tiling, is_frame=is_frame, draw=draw)
            if len(tiles_N3HW) != count:
                raise InputError(f"a picture became {len(tiles_N3HW)} tiles, its header promised {count}")
            tiles.append(tiles_N3HW)
            keys.append(image_key)
        return Example(
            key=key or dataset.name,
            prefix=plan.prefix,
            branches=plan.branches,
            is_preference=plan.is_preference,
            slots=plan.slots,
            tiles_N3HW=torch.cat(tiles) if tiles else None,
            image_keys=tuple(keys),
        )

    def ask(self, row: Mapping[str, Any], dataset: DataSet) -> tuple[Question, ...]:
        """What `chat` would be asked about a row, and the answers on record. Nothing is left to chance, and
        pictures and videos are cut as chat cuts them, but for the data set's own tile limit.

        Raises InputError for a bad sample; pictures are not opened.
        """
        return find_questions(self._read(row, dataset, draw=None), dataset.max_tiles)

    def _read(self, row: Mapping[str, Any], dataset: DataSet, draw: random.Random | None) -> Record:
        """The record of a row; without `draw` its videos are cut as chat cuts them."""
        limits = self._pictures.videos
        read_video = (
            partial(show_frames, limits=limits)
            if draw is None
            else partial(choose_frames, draw=draw, limits=limits)
        )
        record = RecordReader(
            root=dataset.root,
            read_video=read_video,
            draw=draw,
            language=self.language,
            questions=self.questions,
        ).read(row)
        if self.preferences is not None and self.preferences != (record.kind == "preference"):
            raise InputError(UNFIT[self.preferences])
        if self.needs_references and record.kind == "preference" and None in record.references:
            raise InputError(
                "no ref_chosen_logps and ref_rejected_logps: write the records again with `internvl data "
                "reference`, or set objective.reference to adapters_off or copy"
            )
        return record

    def _plan(self, row: Mapping[str, Any], dataset: DataSet, seed: int) -> _Plan:
        draw = random.Random(f"text {seed}")
        record = self._read(row, dataset, draw)
        if record.kind == "answers" and not self.share_pictures:
            record = replace(record, conversations=(draw.choice(record.conversations),), references=(None,))
        pictures = record.conversations[0].pictures
        tilings = share_tiles(pictures, self.processor.config.tiling, dataset.max_tiles)
        tile_counts = self._count_tiles(pictures, tilings)
        sequences = [self._sequence(one, tile_counts, record) for one in record.conversations]
        common = _common(sequences)
        return _Plan(
            prefix=sequences[0].ids[:common],
            branches=tuple(
                Branch(one.ids[common:], one.trained[common:], reference)
                for one, reference in zip(sequences, record.references, strict=True)
            ),
            is_preference=record.kind == "preference",
            slots=sequences[0].slots,
            pictures=pictures,
            tilings=tilings,
            tile_counts=tile_counts,
        )

    def _count_tiles(self, pictures: Sequence[Picture], tilings: Sequence[TilingConfig]) -> list[int]:
        """Tiles of each picture. Raises before more pictures are opened than any sequence holds."""
        tile_counts: list[int] = []
        for picture, tiling in zip(pictures, tilings, strict=True):
            tile_counts.append(self._pictures.num_tiles(picture, tiling))
            self._check_length(sum(tile_counts) * self.processor.config.tokens_per_tile, tile_counts)
        return tile_counts

    def _sequence(self, conversation: Conversation, tile_counts: Sequence[int], record: Record) -> _Sequence:
        """One conversation as ids and marks; the first token has nothing that predicts it."""
        is_raw = record.kind == "raw"
        processor = self._raw if is_raw else self.processor
        if processor.template.strips_training_text:
            messages = tuple(map(_strip, conversation.messages))
            conversation = replace(conversation, messages=messages)
        for index, message in enumerate(conversation.messages):
            if not message.text:
                raise InputError(f"turn {index} ({message.role.value}) is empty")
        self._check_text(conversation, tile_counts)
        # Reading thousands of equal vision tokens takes longer than all the text around them.
        tokens = processor.tokenize(conversation, [1] * len(tile_counts), open_answer=False)
        marks = self._text_marks(tokens) if is_raw else tokens.are_answers
        if not any(marks[1:]):
            raise InputError("no token is trained on: there is no answer")
        if tokens.slots and tokens.slots[-1] == len(tokens.ids) - 1:
            raise InputError("a picture stands at the very end, where nothing can read it")
        found = _expand(tokens, (False, *marks[1:]), tile_counts)
        self._check_length(len(found.ids), tile_counts)
        return found

    def _check_text(self, conversation: Conversation, tile_counts: Sequence[int]) -> None:
        """Raises for far too long a text without reading all of it as tokens, which takes minutes and
        gigabytes for the longest rows."""
        # White space at the edges may be eaten by the marks of the template, which are not here.
        text = "".join(message.text.strip() for message in conversation.messages)
        if len(text) > self.max_length:
            self._check_length(self.processor.tokenizer.least(text), tile_counts)

    def _text_marks(self, tokens: Tokens) -> list[bool]:
        """All but pictures and their tags."""
        slots = set(tokens.slots)
        return [index not in slots and id not in self._tags for index, id in enumerate(tokens.ids)]

    def _check_length(self, num_tokens: int, tile_counts: Sequence[int]) -> None:
        if num_tokens > self.max_length:
            raise InputError(
                f"{num_tokens} tokens ({sum(tile_counts)} tiles of {len(tile_counts)} pictures, "
                f"{self.processor.config.tokens_per_tile} tokens each), the limit is {self.max_length} "
                "(max_length): shorten the text, raise the limit, or allow fewer tiles (max_dynamic_patch)"
            )


def _expand(tokens: Tokens, trained: Sequence[bool], tile_counts: Sequence[int]) -> _Sequence:
    """Pictures read as one tile each, with the slots of all their tiles; slots are never trained on."""
    ids: list[int] = []
    marks: list[bool] = []
    slots: list[int] = []
    start = 0
    width = len(tokens.slots) // max(1, len(tile_counts))
    for number, count in enumerate(tile_counts):
        first = tokens.slots[number * width]
        ids += tokens.ids[start:first] + tokens.ids[first : first + width] * count
        marks += [*trained[start:first], *[False] * (width * count)]
        slots += range(len(ids) - width * count, len(ids))
        start = first + width
    return _Sequence((*ids, *tokens.ids[start:]), (*marks, *trained[start:]), tuple(slots))


def _common(sequences: Sequence[_Sequence]) -> int:
    """Tokens that all sequences begin with, before the first that is trained on; all pictures are among them.

    A single sequence may hold pictures after its first answer.
    """
    before = min(one.trained.index(True) for one in sequences)
    rows = zip(*(one.ids[:before] for one in sequences), strict=True)
    common = sum(1 for _ in takewhile(lambda row: len(set(row)) == 1, rows))
    last = max((one.slots[-1] for one in sequences if one.slots), default=-1)
    if len(sequences) > 1 and (common <= last or not common):
        raise InputError(
            "the questions differ before the picture, so they cannot share it: put <image> first, or set "
            "share_pictures to false"
        )
    return common


def _strip(message: Message) -> Message:
    """Without white space at both ends."""
    parts: list[Part] = list(message.parts)
    while parts and isinstance(parts[0], str) and not parts[0].strip():
        parts.pop(0)
    while parts and isinstance(parts[-1], str) and not parts[-1].strip():
        parts.pop()
    if parts and isinstance(parts[0], str):
        parts[0] = parts[0].lstrip()
    if parts and isinstance(parts[-1], str):
        parts[-1] = parts[-1].rstrip()
    return Message(message.role, tuple(parts))
