"""The record of a run: `log.jsonl`, one JSON object a line, and the same numbers for TensorBoard or wandb.

Rows are plain names and values; `step` counts finished optimiser steps. Knows no model and no recipe.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from internvl.errors import InputError, TrainingError

NAME = "log.jsonl"

Row = dict[str, Any]
Track = Callable[[int, Mapping[str, float]], None]
"""Takes a step and its numbers."""


class Log:
    """Appends rows to `folder/log.jsonl`, flushed at once; a line that a crash cut short is removed first.

    `tensorboard` writes event files beside it; `wandb` names the project of a wandb run, which a resumed run
    continues. Raises TrainingError when a tracker that was asked for is not installed.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = False, wandb: str | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._trackers: list[tuple[Track, Callable[[], None]]] = []
        if tensorboard:
            self._trackers.append(_tensorboard(folder))
        if wandb is not None:
            self._trackers.append(_wandb(folder, wandb))
        _cut_torn_line(folder / NAME)
        self._file = (folder / NAME).open("a", encoding="utf-8")

    def write(self, **row: object) -> None:
        """One row. Numbers that are not finite are written as text, which JSON has no numbers for."""
        plain = {name: _plain(value) for name, value in row.items()}
        self._file.write(json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        step = plain.get("step")
        numbers = {name: float(value) for name, value in plain.items() if _is_number(value)}
        numbers.pop("step", None)
        if isinstance(step, int) and numbers:
            for track, _ in self._trackers:
                track(step, numbers)

    def close(self) -> None:
        self._file.close()
        for _, close in self._trackers:
            close()


def read_rows(folder: Path) -> list[Row]:
    """The rows of `folder/log.jsonl` that count; none without the file, or in an empty one.

    A run that resumes repeats the steps after its last checkpoint. So a row takes back every earlier row of a
    later step, and the one of its own step with the same names. Raises InputError for a line that is no JSON
    object.
    """
    path = folder / NAME
    rows: list[Row] = []
    text = path.read_text(encoding="utf-8").rstrip("\n") if path.is_file() else ""
    for number, line in enumerate(text.split("\n") if text else (), start=1):
        row = _parsed(line, f"{path}, line {number}")
        _take_back(rows, row)
        rows.append(row)
    return rows


def _take_back(rows: list[Row], new: Row) -> None:
    """Removes what `new` repeats; rows are in the order of their steps, so only the end is looked at."""
    step = new.get("step")
    if not isinstance(step, int):
        return
    while rows and rows[-1].get("step", 0) > step:
        rows.pop()
    place = len(rows) - 1
    while place >= 0 and rows[place].get("step") == step:
        if rows[place].keys() == new.keys():
            del rows[place]
        place -= 1


def _parsed(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON ({error}): remove the line") from error
    if not isinstance(row, dict):
        raise InputError(f"{where} is no JSON object: remove the line")
    return row


def _cut_torn_line(path: Path) -> None:
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


def _plain(value: object) -> Any:
    """As JSON has it; a number of torch or numpy by its `item`, anything else as text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if not isinstance(value, bool | int | float | str | None):
        item = getattr(value, "item", None)
        value = item() if callable(item) else str(value)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _tensorboard(folder: Path) -> tuple[Track, Callable[[], None]]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError(
            "TensorBoard is not installed: pip install tensorboard, or run without it"
        ) from error
    writer = SummaryWriter(str(folder / "tensorboard"))

    def track(step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return track, writer.close


def _wandb(folder: Path, project: str) -> tuple[Track, Callable[[], None]]:
    try:
        wandb = importlib.import_module("wandb")
    except ImportError as error:
        raise TrainingError("wandb is not installed: pip install wandb, or run without it") from error
    name = hashlib.blake2b(str(folder.resolve()).encode(), digest_size=8).hexdigest()
    run = wandb.init(project=project, name=folder.name, dir=str(folder), id=name, resume="allow")
    return lambda step, numbers: run.log(dict(numbers), step=step), run.finish
