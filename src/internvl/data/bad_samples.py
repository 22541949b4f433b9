"""Records that cannot be used: each is written down, and too many of them end the run.

Knows the policy and the file; reads no records.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from internvl.data.meta import DataSet
from internvl.data.spec import BadSamples
from internvl.errors import InputError, TokenizerError, TrainingError

BROKEN: tuple[type[Exception], ...] = (InputError, TokenizerError, OSError)
"""What a record may raise while it is read, and be reported for; anything else is a fault of the program."""

REASON = 1000
"""Characters of a message that are kept: some repeat what the row says."""

FIRST = 100
"""Records before the share of bad ones says anything."""


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


class BadSamplesLog:
    """`bad_samples.jsonl`: one row for each, appended in the order of the run; `path` None writes nothing."""

    def __init__(self, path: Path | None, policy: BadSamples) -> None:
        self.path, self.policy = path, policy
        self.num_seen = self.num_bad = 0

    def add(
        self, rows: Sequence[BadSample], *, num_seen: int = 0, stands_for: int = 1, is_written: bool = True
    ) -> None:
        """Writes `rows`, found at `num_seen` more positions; several at one position count as one.

        What only this process has read `stands_for` as many on the others; what all have read is to be
        written by one. Raises TrainingError under policy "stop", or above the limit.
        """
        self.num_seen += num_seen
        self.num_bad += len({row.position for row in rows}) * stands_for
        if rows and is_written and self.path is not None:
            # A name that is no Unicode is written as the escape that JSON has for it.
            with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write("".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows))
        if rows and self.policy.policy == "stop":
            row = rows[0]
            raise TrainingError(
                f"{row.key} ({row.path}) cannot be used: {row.reason}. The policy is to stop; see "
                '`internvl data check`, or set data.bad_samples.policy to "replace"'
            )
        if rows and self.num_seen >= FIRST and self.num_bad > self.policy.limit * self.num_seen:
            raise TrainingError(
                f"{self.num_bad} of {self.num_seen} records cannot be used, more than "
                f"{self.policy.limit:.0%} (data.bad_samples.limit); {self.path or 'the last one'}: "
                f"{rows[-1].key}: {rows[-1].reason}"
            )
