"""The job of `internvl embed` on Ray Data: units done by actors that hold the model, here or on a cluster.

Actors read pictures and hand whole shards back; this process alone writes the folder, as in a local run. So
whoever is killed, a shard is there complete or not at all, and only pictures and model have to be seen by all
machines. Knows Ray; no pictures and no models.
"""

from __future__ import annotations

import logging
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from internvl.errors import InputError, InternVLError
from internvl.search import folder as folders
from internvl.search.embed import Progress, check_same, run_unit
from internvl.search.embedders import Embedder
from internvl.search.extras import import_pyarrow
from internvl.search.inputs import Inputs
from internvl.search.job import Job, Unit, plan
from internvl.search.shards import Shard

MAX_TRIES = 3
"""Times that a unit is begun: what has killed its worker as often (a picture that breaks a decoder, too
little memory) would kill it for ever."""

STORE_BYTES = 128 << 20
"""Of Ray's object store where this process starts Ray; it spills to disk beyond."""


def embed_on_ray(
    job: Job,
    open_embedder: Callable[[], Embedder],
    out: Path,
    *,
    workers: int = 2,
    readers: int = 2,
    threads: int | None = None,
    gpus: float = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`internvl.search.embed.embed` by actors of Ray Data: the same folder to the byte; returns the manifest.

    Runs on the Ray that this process is connected to, else on the cluster that RAY_ADDRESS names, else on one
    of its own on this machine, which ends with the job. A worker that is killed is started again and does its
    unit again. Run again after this process was killed, the job goes on where it was, here or by `embed`.

    Args:
        job: as `make_job` gives it; its inputs are opened by every worker, under the same paths.
        open_embedder: called once in every worker, so it must pickle: a function at the top of a module, or
            a `functools.partial` of one.
        out: the folder; only this process needs to see it.
        workers: actors, each with a model of its own.
        readers: threads of each worker that decode pictures.
        threads: of each worker; as many as torch has here by default. Vectors of another number may differ in
            their last bits. Without `gpus` they are also the processors that Ray reserves.
        gpus: of each worker, beside a processor for each reader.
        progress: called with the rows done and all rows.

    Raises:
        InputError: the folder holds another job; Ray is not installed.
        InternVLError: a worker cannot read inputs or model, or finds others than the job's; or a unit has
            killed its worker three times.
        OSError: the disk refuses, or no cluster is at RAY_ADDRESS.
    """
    ray = _import_ray()
    threads = torch.get_num_threads() if threads is None else threads
    for name, value in (("workers", workers), ("readers", readers), ("threads", threads)):
        if value < 1:
            raise InputError(f"{name} counts from 1, got {value}")
    with folders.claimed(out, job):
        left = {unit.number: unit for unit in folders.pending(out, job)}

        def keep(shard: Shard) -> None:
            folders.store(out, shard)
            left.pop(shard.unit.number, None)
            tell()

        def tell() -> None:
            if progress is not None:
                progress(job.rows - sum(unit.stop - unit.start for unit in left.values()), job.rows)

        tell()
        if left:
            cpus = readers if gpus else threads
            with _connected(ray, workers * cpus):
                tries = ray.remote(num_cpus=0)(Tries).remote()
                worker = (job, open_embedder, partial(_begin, tries), readers, threads)
                _run(ray, tuple(left.values()), worker, keep, workers=workers, cpus=cpus, gpus=gpus)
        return folders.finish(out, job)


def _run(
    ray: Any,
    units: tuple[Unit, ...],
    worker: tuple[Any, ...],
    keep: Callable[[Shard], None],
    *,
    workers: int,
    cpus: int,
    gpus: float,
) -> None:
    """Each unit is a block and so a task: the least that is done again, and that is handed back."""
    pa = import_pyarrow()
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # half an hour by default: less than some units take
    by_number = {unit.number: unit for unit in units}
    with ray.data.DataContext.current(context):
        numbers = ray.data.from_arrow([pa.table({"number": [number]}) for number in by_number])
        results = numbers.map_batches(
            UnitWorker,
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
            fn_constructor_args=worker,
            num_cpus=cpus,
            num_gpus=gpus or None,
        )
        for table in results.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in table.to_pylist():
                keep(unpack(row, by_number))


class UnitWorker:
    """A unit's number to its shard, in a process of Ray Data.

    Inputs and model are opened with the first unit: Ray does again what a killed process was asked, but gives
    up where an actor was killed while it was made.
    """

    def __init__(
        self,
        job: Job,
        open_embedder: Callable[[], Embedder],
        begin: Callable[[int], int],
        readers: int,
        threads: int,
    ) -> None:
        self.job, self.open_embedder, self.begin = job, open_embedder, begin
        self.readers, self.threads = readers, threads
        self.units = plan(job)

    def __call__(self, numbers: Any) -> Any:
        """A table with one number to a table with one row: see `pack`."""
        (number,) = numbers["number"].to_pylist()
        unit = self.units[number]
        try:
            self._count(unit)
            inputs, embedder = self._opened
            with ThreadPoolExecutor(self.readers) as readers:
                return pack(number, run_unit(unit, self.job, inputs, embedder, readers))
        except (InternVLError, OSError) as error:
            return pack(number, f"a worker on {platform.node()}: {error}")

    @cached_property
    def _opened(self) -> tuple[Inputs, Embedder]:
        torch.set_num_threads(self.threads)
        inputs, embedder = Inputs(self.job.inputs, self.job.columns), self.open_embedder()
        check_same(self.job, inputs, embedder)
        return inputs, embedder

    def _count(self, unit: Unit) -> None:
        if self.begin(unit.number) > MAX_TRIES:
            raise InputError(
                f"rows {unit.start} to {unit.stop} of the inputs have killed their worker {MAX_TRIES} times: "
                "look for too little memory, or find the picture by a local run"
            )


class Tries:
    """How often each unit was begun, in a process that outlives the workers."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        self.counts[number] += 1
        return self.counts[number]


def _begin(tries: Any, number: int) -> int:
    count: int = _import_ray().get(tries.begin.remote(number))
    return count


def pack(number: int, result: Shard | str) -> Any:
    """A shard, or what is wrong, as a table of one row: Ray Data may cut tables between rows."""
    pa = import_pyarrow()
    error, names, contents = None, list[str](), list[bytes]()
    if isinstance(result, Shard):
        names, contents = list(result.files), [*result.files.values(), result.receipt]
    else:
        error = result
    columns = {
        "number": pa.array([number], pa.int64()),
        "error": pa.array([error], pa.string()),
        "names": pa.array([names], pa.list_(pa.string())),
        "contents": pa.array([contents], pa.list_(pa.large_binary())),
    }
    return pa.table(columns)


def unpack(row: Mapping[str, Any], units: Mapping[int, Unit]) -> Shard:
    """The shard of a row of `pack`. Raises InternVLError with what is wrong."""
    if row["error"] is not None:
        raise InternVLError(row["error"])
    *contents, receipt = row["contents"]
    files = dict(zip(row["names"], contents, strict=True))
    return Shard(unit=units[row["number"]], files=files, receipt=receipt)


@contextmanager
def _connected(ray: Any, cpus: int) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS") or "local"
    own = {"num_cpus": cpus, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports its use to its makers otherwise
    ray.init(address=address, logging_level=logging.WARNING, **(own if address == "local" else {}))
    try:
        yield
    finally:
        ray.shutdown()


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as reason:
        raise InputError("embedding on Ray needs ray: pip install 'internvl[ray]'") from reason
    return ray
