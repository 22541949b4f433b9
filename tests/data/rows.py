"""Small files of rows, and data sets over them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from internvl.data.meta import DataSet
from internvl.data.sources import open_source


def write_jsonl(path: Path, rows: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def numbered(folder: Path, name: str, count: int, **options: Any) -> DataSet:
    """A data set of `count` rows `{"id": number}`."""
    path = write_jsonl(folder / f"{name}.jsonl", ({"id": number} for number in range(count)))
    return DataSet(name=name, source=open_source(path), root=folder, **options)
