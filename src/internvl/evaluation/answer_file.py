"""Answers on disk, a JSON object a line: written as they come, complete under their own name.

While it grows the file is called `NAME.partial`, so that a run that ended early goes on where it was. Knows
rows; no models and no scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from internvl.errors import InputError

Row = Mapping[str, Any]

FIELDS: Mapping[str, type] = {"key": str, "question": str, "answer": str, "references": list, "made_by": str}


class AnswerFile:
    """The answers at `path`, of the model and settings that `made_by` stands for.

    Raises InputError for a file that holds something else, or answers of others.
    """

    def __init__(self, path: Path, made_by: str) -> None:
        self.path, self.made_by = path, made_by
        self.partial = path.with_name(f"{path.name}.partial")
        if not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}")
        found = self.partial if self.partial.exists() else path
        self.rows: dict[str, Row] = {}
        if found.exists():
            self.rows = {row["key"]: row for row in _read(found)}
        if any(row["made_by"] != made_by for row in self.rows.values()):
            raise InputError(
                f"{found} holds answers of another model or other settings: name another file, or delete it"
            )
        self._write(self.partial, self.rows.values())

    def find(self, key: str, question: str, references: Sequence[str]) -> str | None:
        """The answer, if this very question was asked before."""
        row = self.rows.get(key)
        if row is None or row["question"] != question or row["references"] != list(references):
            return None
        return str(row["answer"])

    def add(self, key: str, question: str, answer: str, references: Sequence[str]) -> None:
        """One more, at once on disk."""
        row = self._row(key, question, answer, references)
        self.rows[key] = row
        with self.partial.open("ab") as file:
            file.write(_line(row))

    def finish(self, scores: Mapping[str, Mapping[str, float]]) -> int:
        """The file under its own name: the questions with `scores` in their order, then all others that it
        held, whose number is returned."""
        first = [{**self.rows[key], "score": dict(score)} for key, score in scores.items()]
        others = [row for key, row in self.rows.items() if key not in scores]
        self._write(self.path, [*first, *others])
        self.partial.unlink()
        return len(others)

    def _row(self, key: str, question: str, answer: str, references: Sequence[str]) -> Row:
        return {
            "key": key,
            "question": question,
            "answer": answer,
            "references": list(references),
            "made_by": self.made_by,
        }

    def _write(self, path: Path, rows: Iterable[Row]) -> None:
        """Whole or not at all."""
        whole = self.path.with_name(f"{self.path.name}.whole")
        with whole.open("wb") as file:
            file.writelines(map(_line, rows))
        whole.replace(path)


def _line(row: Row) -> bytes:
    # Half of a surrogate pair is written as the escape that JSON has for it.
    return f"{json.dumps(row, ensure_ascii=False)}\n".encode(errors="backslashreplace")


def _read(path: Path) -> list[Row]:
    """The rows; a last line that was cut off when a run was killed is left out."""
    *lines, _ = path.read_bytes().split(b"\n")
    return [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _row(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as reason:
        raise InputError(f"{where}: no JSON object, so the file holds no answers: {reason}") from reason
    if not isinstance(row, dict) or not all(isinstance(row.get(key), kind) for key, kind in FIELDS.items()):
        raise InputError(f"{where}: a row of answers has {', '.join(FIELDS)}; choose another file")
    return row
