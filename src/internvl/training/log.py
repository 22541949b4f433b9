"""The record of a run: one JSON object a line, flushed at once, appended to when a run resumes."""

from __future__ import annotations

import json
from pathlib import Path


class Log:
    """Appends rows to a JSONL file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **row: object) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
