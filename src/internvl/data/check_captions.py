"""Pairs looked at before a run: every caption of a row, where a run draws one.

Stands in for `PairExamples` in `data.check`; what it counts is kept by language. Knows no model.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

from internvl.data.check import Spread, spread_of
from internvl.data.example import Size
from internvl.data.meta import DataSet
from internvl.data.pair_examples import PairExamples
from internvl.data.pairs import PairExample


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageReport:
    """Captions of one language in all data sets. `tokens` are those of a caption as it is embedded."""

    language: str
    num_rows: int
    num_captions: int
    tokens: Spread


class CaptionCheck:
    """Makes pairs and counts their captions. Safe under threads; each row is to be measured once."""

    def __init__(self, examples: PairExamples) -> None:
        self.examples = examples
        self._lengths: dict[str, array[int]] = {}
        self._rows: dict[str, int] = {}
        self._lock = Lock()

    def measure(self, row: Mapping[str, Any], dataset: DataSet, *, seed: int) -> Size:
        """The size of the pair that `seed` draws. Raises InputError for a bad sample: with a picture whose
        header cannot be read, or any caption that is empty or too long."""
        found = self.examples.lengths(row, dataset)
        size = self.examples.measure(row, dataset, seed=seed)
        with self._lock:
            for language, lengths in found.items():
                self._lengths.setdefault(language, array("i")).extend(lengths)
                self._rows[language] = self._rows.get(language, 0) + 1
        return size

    def example(self, row: Mapping[str, Any], dataset: DataSet, *, seed: int, key: str) -> PairExample:
        """As `PairExamples.example`."""
        return self.examples.example(row, dataset, seed=seed, key=key)

    def languages(self) -> tuple[LanguageReport, ...]:
        """What was counted so far, the language with most captions first; of rows whose picture turned out
        broken when it was decoded, too."""
        return tuple(
            LanguageReport(
                language=language,
                num_rows=self._rows[language],
                num_captions=len(lengths),
                tokens=spread_of(lengths),
            )
            for language, lengths in sorted(self._lengths.items(), key=lambda one: (-len(one[1]), one[0]))
        )
