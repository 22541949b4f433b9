"""Captioned pictures as groups of token ids: which pictures and questions a step sees.

A step's choice is a function of the step and the seed. Prompts come from the same processor that serves
chat, so training and inference cannot drift apart. Knows no model.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from internvl.config import IMG_CONTEXT, ChatConfig
from internvl.data.captions import Group
from internvl.data.records import tidy
from internvl.errors import InputError
from internvl.processing.conversation import Conversation, Message, Picture, Role
from internvl.processing.image import load_image
from internvl.processing.processor import Processor
from internvl.processing.tiles import Tiles, prepare
from internvl.processing.tiling import Grid
from internvl.processing.tokenizer import load_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Captioned:
    """One picture and what people wrote about it."""

    image: Path
    captions: tuple[str, ...]


def read_captions(path: Path, language: str = "en", limit: int | None = None) -> tuple[Captioned, ...]:
    """Lines `{"image": relative path, LANGUAGE: [captions]}`; images are relative to the file's folder.

    Raises InputError naming the line that does not have this form.
    """
    if not path.is_file():
        raise InputError(f"no caption file {path}: give the path of a JSONL file")
    records: list[Captioned] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if limit is not None and len(records) >= limit:
                break
            records.append(_record(line, language, path, number))
    return tuple(records)


def _record(line: str, language: str, path: Path, number: int) -> Captioned:
    try:
        row = json.loads(line)
        image, captions = row["image"], row[language]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}, line {number}: no object with 'image' and '{language}' ({error!r})"
        ) from error
    if not isinstance(image, str) or not isinstance(captions, list) or not captions:
        raise InputError(f"{path}, line {number}: 'image' must be text and '{language}' a list of captions")
    if not all(isinstance(caption, str) and caption.strip() for caption in captions):
        raise InputError(f"{path}, line {number}: every caption must be a text that is not empty")
    return Captioned(image=path.parent / image, captions=tuple(map(tidy, captions)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What is asked: `main` with probability `main_share`, else one of `others`."""

    main: str
    others: tuple[str, ...] = ()
    main_share: float = 0.5

    def draw(self, source: random.Random) -> str:
        if source.random() < self.main_share or not self.others:
            return self.main
        return self.others[source.randrange(len(self.others))]


class CaptionSet:
    """Records that a processor turns into groups, one picture of one tile each."""

    def __init__(self, records: Sequence[Captioned], processor: Processor, questions: Questions) -> None:
        if not records:
            raise InputError("no captions to train on")
        self.records, self.processor, self.questions = records, processor, questions
        context_id = processor.tokenizer.token_id(IMG_CONTEXT)
        if context_id is None:
            raise InputError(f"the tokenizer has no {IMG_CONTEXT}")
        self.context_id = context_id
        size = processor.config.tiling.tile_size
        self._blank = Tiles(
            tiles_N3HW=torch.zeros(1, 3, size, size), grid=Grid(1, 1), width=size, height=size, key="blank"
        )

    def tiles(self, index: int) -> Tensor:
        """The tiles of a picture, (N, 3, H, W). Raises ImageError for a picture that cannot be read."""
        image = load_image(self.records[index].image)
        return prepare(image, self.processor.config.tiling).tiles_N3HW

    def choose(self, step: int, batch_size: int, seed: int) -> tuple[list[int], list[str]]:
        """Indices of the records of a step, and the question for each. An epoch meets every record once;
        what does not fill a batch is left out of it."""
        per_epoch = max(1, len(self.records) // batch_size)
        epoch, place = divmod(step, per_epoch)
        shuffle = torch.Generator().manual_seed(seed + 1000 + epoch)
        order = torch.randperm(len(self.records), generator=shuffle).tolist()
        indices = sorted(order[place * batch_size : (place + 1) * batch_size])
        source = random.Random(seed * 1_000_003 + step)
        return indices, [self.questions.draw(source) for _ in indices]

    def group(self, index: int, question: str) -> Group:
        """The prompt of a picture as prefix, its captions with their end mark as branches."""
        prefixes, branches = set(), []
        for caption in self.records[index].captions:
            user = Message(Role.USER, (Picture(self._blank), f"\n{question}"))
            conversation = Conversation((user,)).with_answer(caption)
            inputs = self.processor(conversation, open_answer=False)
            start = inputs.are_answers.index(True)
            stop = start + sum(inputs.are_answers)
            prefixes.add(tuple(inputs.ids[:start]))
            branches.append(tuple(inputs.ids[start:stop]))
        if len(prefixes) != 1:
            raise InputError(
                f"the prompt of {self.records[index].image} depends on its captions: cannot share it"
            )
        return Group(prefix=prefixes.pop(), branches=tuple(branches))


def open_captions(
    path: Path, checkpoint: Path, config: ChatConfig, questions: Questions, language: str = "en"
) -> CaptionSet:
    """The captions of `path` (see `records.read_captions`) with the tokenizer of a checkpoint."""
    processor = Processor(config, load_tokenizer(checkpoint))
    return CaptionSet(read_captions(path, language), processor, questions)
