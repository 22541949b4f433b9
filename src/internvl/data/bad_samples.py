"""Records that cannot be used: each is written down, and too many of them end the run.

Knows the policy and the file; reads no records.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from internvl.data.meta import DataSet
from internvl.data.spec import BadSamples
from internvl.errors import InputError, TokenizerError, TrainingError

BROKEN: tuple[type[Exception], ...] = (InputError, TokenizerError, OSError)
"""What a record may raise while it is read, and be reported for; anything else is a fault of the program."""

REASON = 1000
"""Characters of a message that are kept: some repeat what the row says."""

FIRST = 100
"""Records before the share of bad ones says anything, unless all there are were seen (`judge`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadSample:
    """`key` is data set and row, `path` where the row lies, `position` the record's place in the order of the
    run (outside of one, its row); `reason` says what is wrong, `error` is its kind."""

    key: str
    path: str
    position: int
    reason: str
    error: str

    @classmethod
    def of(cls, dataset: DataSet, row: int, position: int, error: Exception) -> BadSample:
        """The row of `dataset` that raised `error`; a long message is shortened."""
        reason = str(error)
        return cls(
            key=key_of(dataset, row),
            path=dataset.source.where(row),
            position=position,
            reason=reason if len(reason) <= REASON else f"{reason[:REASON]}...",
            error=type(error).__name__,
        )


def key_of(dataset: DataSet, row: int) -> str:
    """The name of a record in reports and logs."""
    return f"{dataset.name}:{row}"


def read_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a `bad_samples.jsonl`, none without the file; a line that a crash cut short is no row."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict):
                yield row


def read_kinds(path: Path) -> dict[str, str]:
    """The kind of error of each record in the file, by its key: a record comes once an epoch."""
    return {str(row.get("key", "?")): str(row.get("error", "?")) for row in read_rows(path)}


class BadSamplesLog:
    """`bad_samples.jsonl`: one row for each, appended in the order of the run; `path` None writes nothing.

    What the file holds already is not written again: a run that goes on repeats some positions.
    """

    def __init__(self, path: Path | None, policy: BadSamples) -> None:
        self.path, self.policy = path, policy
        self.num_seen = self.num_bad = 0
        self._last: BadSample | None = None
        before = () if path is None else read_rows(path)
        self._written = {(row.get("key"), row.get("position")) for row in before}

    def add(
        self, rows: Sequence[BadSample], *, num_seen: int = 0, stands_for: int = 1, is_written: bool = True
    ) -> None:
        """Writes `rows`, found at `num_seen` more positions; several at one position count as one.

        What only this process has read `stands_for` as many on the others; what all have read is to be
        written by one. Raises TrainingError under policy "stop", or above the limit.
        """
        self._last = rows[-1] if rows else self._last
        self.num_seen += num_seen
        self.num_bad += len({row.position for row in rows}) * stands_for
        if is_written:
            self._write([row for row in rows if (row.key, row.position) not in self._written])
        if rows and self.policy.policy == "stop":
            row = rows[0]
            raise TrainingError(
                f"{row.key} ({row.path}) cannot be used: {row.reason}. The policy is to stop; see "
                '`internvl data check`, or set data.bad_samples.policy to "replace"'
            )
        if self.num_seen >= FIRST:
            self.judge()

    def judge(self) -> None:
        """Raises TrainingError above the limit, however few were seen."""
        if self.num_bad <= self.policy.limit * self.num_seen:
            return
        last = "" if self._last is None else f", the last {self._last.key}: {self._last.reason}"
        raise TrainingError(
            f"{self.num_bad} of {self.num_seen} records cannot be used, more than {self.policy.limit:.0%}; "
            f"see {self.path or '`internvl data check`'}{last}. Mend them and start again, or go on with "
            "--resume and a larger data.bad_samples.limit"
        )

    def state(self) -> dict[str, int]:
        return {"num_seen": self.num_seen, "num_bad": self.num_bad}

    def restore(self, state: Mapping[str, int]) -> None:
        self.num_seen, self.num_bad = int(state["num_seen"]), int(state["num_bad"])

    def _write(self, rows: Sequence[BadSample]) -> None:
        if not rows or self.path is None:
            return
        # A name that is no Unicode is written as the escape that JSON has for it.
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            if _is_torn(self.path):
                file.write("\n")
            file.write("".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows))


def _is_torn(path: Path) -> bool:
    """Whether a crash cut the last line short."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read(1) not in (b"", b"\n")
