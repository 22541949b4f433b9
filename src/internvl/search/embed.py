"""Units of a job to shards: pictures read ahead in threads, vectors in the order of the rows.

`run_unit` is a function of the unit, the job and the embedder, so a unit that is done again, or on another
machine of the same kind, gives the same bytes. Knows neither folders nor models. Shape letters: B pictures,
S side of the square, E width of the vectors.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from internvl.data.bad_samples import BROKEN, REASON
from internvl.errors import InputError
from internvl.processing.image import ImageLimits, load_image
from internvl.search import folder as folders
from internvl.search.columns import readable
from internvl.search.embedders import Embedder
from internvl.search.inputs import Inputs, Item
from internvl.search.job import Form, Job, Precision, Unit
from internvl.search.shards import Entry, Failure, Shard, make_shard

Read = TypeVar("Read")
Given = TypeVar("Given")
Progress = Callable[[int, int], None]
"""Rows done, and rows in all."""


def make_job(
    inputs: Inputs,
    embedder: Embedder,
    *,
    form: Form = "parquet",
    precision: Precision = "float32",
    shard_rows: int = 1000,
    batch: int = 8,
) -> Job:
    """The job of embedding all of `inputs`. Raises InputError for counts below 1."""
    return Job(
        inputs=tuple(map(str, inputs.paths)),
        columns=inputs.columns,
        rows=len(inputs),
        fingerprint=inputs.fingerprint,
        embedder=embedder.identity,
        width=embedder.width,
        form=form,
        precision=precision,
        shard_rows=shard_rows,
        batch=batch,
    )


def embed(
    job: Job,
    inputs: Inputs,
    embedder: Embedder,
    out: Path,
    *,
    workers: int = 2,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The whole job into the folder `out`, going on where an earlier run ended; returns the manifest.

    Raises InputError where the folder holds another job, and OSError where the disk refuses.
    """
    check_same(job, inputs, embedder)
    with folders.claimed(out, job), ThreadPoolExecutor(workers) as readers:
        todo = folders.pending(out, job)
        done = job.rows - sum(unit.stop - unit.start for unit in todo)
        for unit in todo:
            if progress is not None:
                progress(done, job.rows)
            folders.store(out, run_unit(unit, job, inputs, embedder, readers))
            done += unit.stop - unit.start
        if progress is not None:
            progress(done, job.rows)
        return folders.finish(out, job)


def check_same(job: Job, inputs: Inputs, embedder: Embedder) -> None:
    """Raises InputError where inputs or embedder are not those the job was made with."""
    if len(inputs) != job.rows or inputs.fingerprint != job.fingerprint:
        raise InputError("the inputs have changed since the job was made: make a new one")
    if dict(embedder.identity) != dict(job.embedder) or embedder.width != job.width:
        raise InputError(f"the job is for {dict(job.embedder)}, this model is {dict(embedder.identity)}")


def run_unit(unit: Unit, job: Job, inputs: Inputs, embedder: Embedder, readers: Executor) -> Shard:
    """The shard of a unit. `readers` decode pictures; how many they are changes no bytes."""
    failures: list[Failure] = []
    entries: list[Entry] = []
    waiting: list[Tensor] = []
    vectors: list[NDArray[Any]] = [np.empty((0, job.width), np.float32)]

    def flush() -> None:
        if waiting:
            vectors.append(_vectors(embedder, torch.stack(waiting), job.width))
            waiting.clear()

    found = _find(unit, inputs, failures)
    limits = ImageLimits()
    for row, item, result in ahead(
        readers, lambda pair: (*pair, _prepare(pair[1], embedder, limits)), found, 2 * job.batch
    ):
        if not isinstance(result, Tensor):
            failures.append(_failure(inputs, row, item, result))
            continue
        entries.append(Entry(row=row, picture=item.picture, key=item.key, metadata=item.metadata))
        waiting.append(result)
        if len(waiting) == job.batch:
            flush()
    flush()
    return _make(unit, job, inputs, entries, np.concatenate(vectors), failures)


def ahead(
    readers: Executor, work: Callable[[Given], Read], items: Iterable[Given], limit: int
) -> Iterator[Read]:
    """`map(work, items)` with at most `limit` results begun and not yet taken."""
    begun: deque[Future[Read]] = deque()
    try:
        for item in items:
            begun.append(readers.submit(work, item))
            if len(begun) >= limit:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        for future in begun:
            future.cancel()


def _find(unit: Unit, inputs: Inputs, failures: list[Failure]) -> Iterator[tuple[int, Item]]:
    """The pictures of the rows; a row that cannot be read joins the failures."""
    for row in range(unit.start, unit.stop):
        try:
            items = inputs.items(row)
        except BROKEN as error:
            failures.append(_failure(inputs, row, None, error))
            continue
        yield from ((row, item) for item in items)


def _prepare(item: Item, embedder: Embedder, limits: ImageLimits) -> Tensor | Exception:
    """The picture as the embedder takes it, or what is wrong with it."""
    try:
        return embedder.prepare(load_image(item.source, limits))
    except BROKEN as error:
        return error


def _vectors(embedder: Embedder, tiles_B3SS: Tensor, width: int) -> NDArray[Any]:
    vectors_BE = embedder.embed(tiles_B3SS)
    if vectors_BE.shape != (len(tiles_B3SS), width):
        raise InputError(
            f"{len(tiles_B3SS)} pictures gave vectors {tuple(vectors_BE.shape)}, not {width} wide"
        )
    return vectors_BE.float().cpu().numpy()


def _make(
    unit: Unit,
    job: Job,
    inputs: Inputs,
    entries: list[Entry],
    vectors_BE: NDArray[Any],
    failures: list[Failure],
) -> Shard:
    """Without the vectors that are no numbers in the precision they are kept in: no index could hold them."""
    with np.errstate(over="ignore"):
        kept_BE = vectors_BE.astype(job.precision)
    is_finite_B = np.isfinite(kept_BE).all(axis=1)
    for index in np.flatnonzero(~is_finite_B):
        entry = entries[index]
        error = InputError(f"its vector is not finite in {job.precision}")
        failures.append(_failed(inputs, entry.row, entry.picture, entry.key, error))
    failures.sort(key=lambda one: (one.row, -1 if one.picture is None else one.picture))
    entries = [entry for entry, is_kept in zip(entries, is_finite_B, strict=True) if is_kept]
    return make_shard(unit, job, entries, kept_BE[is_finite_B], failures)


def _failure(inputs: Inputs, row: int, item: Item | None, error: Exception) -> Failure:
    if item is None:
        return _failed(inputs, row, None, inputs.fallback_key(row), error)
    return _failed(inputs, row, item.picture, item.key, error)


def _failed(inputs: Inputs, row: int, picture: int | None, key: str, error: Exception) -> Failure:
    reason = re.sub(" at 0x[0-9a-f]+", "", readable(str(error)))  # addresses in memory differ every time
    return Failure(
        row=row,
        picture=picture,
        key=key,
        where=inputs.where(row),
        error=type(error).__name__,
        reason=reason if len(reason) <= REASON else f"{reason[:REASON]}...",
    )
