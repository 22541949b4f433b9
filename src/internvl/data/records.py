"""Training examples as they lie on disk: one JSON object a line.

Knows files and text; no tokenizer, no pixels, no model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from internvl.errors import InputError


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


def tidy(caption: str) -> str:
    """A tokenised caption as a written sentence: "a dog runs ." becomes "A dog runs."."""
    words = " ".join(caption.split())
    for mark in (".", ",", "!", "?", ";", ":", "'s", "n't"):
        words = words.replace(f" {mark}", mark)
    words = words.rstrip(".!?,;: ")
    return f"{words[:1].upper()}{words[1:]}." if words else caption.strip()
