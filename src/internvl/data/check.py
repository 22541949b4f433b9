"""Data looked at before a run: every record in use read, measured and decoded; what is broken is listed.

Size tokens, tiles and trained tokens, and how many steps an epoch makes. Knows no model but what makes the
examples, and trains nothing.
"""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from internvl.data.bad_samples import BROKEN, BadSample, key_of
from internvl.data.example import Size
from internvl.data.meta import DataSet
from internvl.data.mixture import Mixture
from internvl.data.packing import check_fits, fill_packs
from internvl.data.places import Maker
from internvl.data.spec import DataSpec

ROWS_AT_ONCE = 64
PLANNED = 20_000
"""Records of an epoch that are packed to see how full packs become."""

SAMPLE = 1000
"""Sizes that are handed on."""

BOUNDS: tuple[int, ...] = (0, *(2**power for power in range(31)))

Progress = Callable[[str, float, float | None], None]
"""A data set's name, its rows looked at, its rows in use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How a number is spread over records. `histogram`: (bound, records up to it and above the one before),
    bounds doubling."""

    least: int
    median: int
    p95: int
    most: int
    total: int
    histogram: tuple[tuple[int, int], ...]


def spread_of(numbers: Iterable[int]) -> Spread:
    """How numbers, none below 0, are spread."""
    values = sorted(numbers)
    if not values:
        return Spread(least=0, median=0, p95=0, most=0, total=0, histogram=())
    counts = Counter(BOUNDS[bisect_left(BOUNDS, value)] for value in values)
    return Spread(
        least=values[0],
        median=values[len(values) // 2],
        p95=values[len(values) * 95 // 100],
        most=values[-1],
        total=sum(values),
        histogram=tuple(sorted(counts.items())),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SetReport:
    """One data set. `kinds` counts the broken records by kind of error; the spreads are of the others."""

    name: str
    num_rows: int
    per_epoch: int
    num_bad: int
    kinds: Mapping[str, int]
    tokens: Spread
    tiles: Spread
    trained: Spread

    @property
    def coverage(self) -> float:
        """The share of tokens that are trained on."""
        return self.trained.total / max(1, self.tokens.total)


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """What an epoch comes to without its broken records. `token_fill` and `tile_fill` are the shares
    of the packs' limits in use, None where steps are not packed. `seconds` is the time to read it with the
    threads that read here."""

    num_records: int
    num_tokens: int
    num_tiles: int
    num_steps: int
    token_fill: float | None
    tile_fill: float | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`epoch` is None where no record can be used. `sample` are the sizes of an epoch's first records."""

    sets: tuple[SetReport, ...]
    bad: tuple[BadSample, ...]
    epoch: Epoch | None
    sample: tuple[Size, ...] = ()

    @property
    def is_good(self) -> bool:
        return not self.bad


def check(
    datasets: Sequence[DataSet],
    examples: Maker[Any],
    spec: DataSpec,
    *,
    decode: bool = True,
    progress: Progress = lambda name, done, total: None,
) -> Report:
    """Reads every row in use, with `spec.workers` threads; without `decode` pictures only as far as their
    headers.

    `progress` is told of every few rows. What is wrong with a row is part of the report; nothing is raised.
    """
    start = time.perf_counter()
    tables = [_Table(dataset.size) for dataset in datasets]
    with ThreadPoolExecutor(spec.workers, "check") as readers:
        for dataset, table in zip(datasets, tables, strict=True):
            look = partial(_look, dataset, examples, spec, decode)
            for first in range(0, dataset.size, ROWS_AT_ONCE):
                rows = range(first, min(first + ROWS_AT_ONCE, dataset.size))
                for row, found in zip(rows, readers.map(look, rows), strict=True):
                    table.put(row, found)
                progress(dataset.name, rows.stop, dataset.size)
    seconds = time.perf_counter() - start
    rate = seconds / max(1, sum(dataset.size for dataset in datasets))
    mixture = Mixture(datasets, spec.sampling)
    sizes = _first_sizes(mixture, tables)
    return Report(
        sets=tuple(map(_summarise, datasets, tables)),
        bad=tuple(one for table in tables for one in table.bad),
        epoch=_epoch(mixture, sizes, spec, rate) if sizes else None,
        sample=tuple(sizes[:SAMPLE]),
    )


def _look(
    dataset: DataSet, examples: Maker[Any], spec: DataSpec, decode: bool, number: int
) -> Size | BadSample:
    try:
        row = dataset.source.row(number)
        size = examples.measure(row, dataset, seed=0)
        check_fits(size, spec.batching)
        if decode:
            examples.example(row, dataset, seed=0, key=key_of(dataset, number))
    except BROKEN as error:
        return BadSample.of(dataset, number, number, error)
    return size


class _Table:
    """Sizes by row, 12 bytes each; -1 for a broken row, of which `bad` holds the report."""

    def __init__(self, num_rows: int) -> None:
        self.bad: list[BadSample] = []
        self.columns = tuple(array("i", [-1]) * num_rows for _ in Size._fields)

    def put(self, row: int, found: Size | BadSample) -> None:
        if isinstance(found, BadSample):
            self.bad.append(found)
            return
        for column, count in zip(self.columns, found, strict=True):
            column[row] = count

    def get(self, row: int) -> Size | None:
        size = Size(*(column[row] for column in self.columns))
        return None if size.tokens < 0 else size

    def spread(self, name: str) -> Spread:
        return spread_of(value for value in self.columns[Size._fields.index(name)] if value >= 0)


def _summarise(dataset: DataSet, table: _Table) -> SetReport:
    return SetReport(
        name=dataset.name,
        num_rows=dataset.size,
        per_epoch=dataset.per_epoch,
        num_bad=len(table.bad),
        kinds=dict(Counter(one.error for one in table.bad)),
        tokens=table.spread("tokens"),
        tiles=table.spread("tiles"),
        trained=table.spread("trained"),
    )


def _first_sizes(mixture: Mixture, tables: Sequence[_Table]) -> list[Size]:
    """Of the usable ones among the first records of an epoch."""
    picks = (mixture.pick(position) for position in range(min(len(mixture), PLANNED)))
    return [size for pick in picks if (size := tables[pick.dataset].get(pick.row)) is not None]


def _epoch(mixture: Mixture, sizes: Sequence[Size], spec: DataSpec, rate: float) -> Epoch:
    """From the first records of an epoch, scaled to all of it."""
    num_steps, rest = 0, sizes
    while rest:
        rest = rest[sum(map(len, fill_packs(rest, spec.batching))) :]
        num_steps += 1
    share = len(mixture) / min(len(mixture), PLANNED)
    num_tokens = sum(size.tokens for size in sizes)
    num_tiles = sum(size.tiles for size in sizes)
    batching = spec.batching
    num_packs = None if batching.packs is None else num_steps * batching.packs
    return Epoch(
        num_records=round(len(sizes) * share),
        num_tokens=round(num_tokens * share),
        num_tiles=round(num_tiles * share),
        num_steps=round(num_steps * share),
        token_fill=None if num_packs is None else num_tokens / (num_packs * batching.max_tokens),
        tile_fill=None if num_packs is None else num_tiles / (num_packs * batching.max_tiles),
        seconds=rate * len(mixture),
    )
