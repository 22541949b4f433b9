"""Rows of known size and fault, and a maker of examples that reads nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from internvl.data.example import Branch, Example, Size
from internvl.data.meta import DataSet
from internvl.errors import ImageError, InputError


@dataclass(frozen=True)
class Rows:
    """A source in memory. A row is (tokens, tiles, fault); faults: "", "row", "measure", "decode"."""

    rows: Sequence[tuple[int, int, str]]
    name: str = "rows"

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Mapping[str, Any]:
        tokens, tiles, fault = self.rows[index]
        if fault == "row":
            raise InputError(f"{self.where(index)}: no JSON")
        return {"tokens": tokens, "tiles": tiles, "fault": fault}

    def where(self, index: int) -> str:
        return f"{self.name}, line {index + 1}"


class FakeExamples:
    """Examples of as many tokens and tiles as a row says; the last token carries the seed."""

    def measure(self, row: Mapping[str, Any], dataset: DataSet, *, seed: int) -> Size:
        if row["fault"] == "measure":
            raise InputError("two marks, one picture")
        return Size(row["tokens"], row["tiles"], trained=1)

    def example(self, row: Mapping[str, Any], dataset: DataSet, *, seed: int, key: str) -> Example:
        if row["fault"] == "decode":
            raise ImageError("cut off")
        if row["fault"] == "program":
            raise ZeroDivisionError
        return Example(
            key=key,
            prefix=tuple(range(row["tokens"] - 1)),
            branches=(Branch((seed % 1000,), (True,)),),
            tiles_N3HW=torch.zeros(row["tiles"], 3, 2, 2) if row["tiles"] else None,
        )


def data_set(rows: Sequence[tuple[int, int, str]], name: str = "rows") -> DataSet:
    return DataSet(name=name, source=Rows(rows, name), root=Path())
