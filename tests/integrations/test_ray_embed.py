"""Jobs on Ray end in the folder of a local run, to the byte, whoever is killed meanwhile."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest

from internvl.errors import InputError, InternVLError
from internvl.integrations.ray_embed import MAX_TRIES, Tries, UnitWorker, embed_on_ray, pack, unpack
from internvl.search.embed import make_job, run_unit
from internvl.search.embedders import Embedder
from internvl.search.folder import claimed, finish, pending, read_manifest, store
from internvl.search.inputs import Inputs
from internvl.search.job import Job, plan
from internvl.search.shards import Shard
from tests.conftest import ROOT, GoldenFixtures
from tests.integrations.ray_job import DEADLY, HOLD
from tests.search.fakes import BROKEN, FakeEmbedder, contents, picture, write_embeddings, write_folder

PATIENCE = 400
"""Seconds for a step: Ray takes many to start where others need the processors."""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "pictures", 17)


def a_job(pictures: Path) -> Job:
    return make_job(Inputs([pictures]), FakeEmbedder(), shard_rows=4, batch=3)


def a_worker(job: Job, open_embedder: Callable[[], Embedder] = FakeEmbedder) -> UnitWorker:
    return UnitWorker(job, open_embedder, Tries().begin, 2, 1)


def ask(worker: UnitWorker, job: Job, number: int) -> Shard:
    (row,) = worker(pa.table({"number": [number]})).to_pylist()
    return unpack(row, dict(enumerate(plan(job))))


def test_two_workers_write_what_one_process_writes(tmp_path: Path, pictures: Path) -> None:
    expected = contents(write_embeddings(tmp_path / "a", [pictures]))
    job = a_job(pictures)
    workers = [a_worker(job), a_worker(job)]
    with claimed(tmp_path / "b", job):
        for unit in reversed(pending(tmp_path / "b", job)):
            store(tmp_path / "b", ask(workers[unit.number % 2], job, unit.number))
        finish(tmp_path / "b", job)
    assert contents(tmp_path / "b") == expected


def test_a_shard_is_handed_back_whole(pictures: Path) -> None:
    job = a_job(pictures)
    with ThreadPoolExecutor(1) as readers:
        shard = run_unit(plan(job)[1], job, Inputs([pictures]), FakeEmbedder(), readers)
    files = {"a": b"", "b": b"ends with nothing\0\0", **shard.files}
    shard = Shard(unit=shard.unit, files=files, receipt=shard.receipt)
    table = pack(1, shard)
    assert table.num_rows == 1
    assert unpack(table.to_pylist()[0], {1: shard.unit}) == shard


def test_what_a_worker_cannot_do_is_told_with_its_machine(pictures: Path) -> None:
    job = a_job(pictures)

    def refuse() -> FakeEmbedder:
        raise InputError("no such model")

    with pytest.raises(InternVLError, match=f"a worker on {platform.node()}: no such model"):
        ask(a_worker(job, refuse), job, 0)
    with pytest.raises(InternVLError, match="the job is for"):
        ask(a_worker(job, lambda: FakeEmbedder(seed=1)), job, 0)
    (pictures / "0000.png").unlink()
    with pytest.raises(InternVLError, match="the inputs have changed"):
        ask(a_worker(job), job, 0)


def test_what_kills_its_worker_is_given_up(pictures: Path) -> None:
    job, tries = a_job(pictures), Tries()
    for _ in range(MAX_TRIES):
        assert ask(UnitWorker(job, FakeEmbedder, tries.begin, 1, 1), job, 2).unit.number == 2
    with pytest.raises(InternVLError, match="rows 8 to 12 of the inputs have killed their worker 3 times"):
        ask(UnitWorker(job, FakeEmbedder, tries.begin, 1, 1), job, 2)
    assert ask(UnitWorker(job, FakeEmbedder, tries.begin, 1, 1), job, 3).unit.number == 3


def test_without_ray(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'internvl\[ray\]'"):
        embed_on_ray(a_job(pictures), FakeEmbedder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="RAY IS NOT INSTALLED: jobs on Ray are not tested (pip install 'internvl[ray]')",
)


@needs_ray
@pytest.mark.parametrize("name", ["workers", "readers", "threads"])
def test_counts_below_one_are_refused(tmp_path: Path, pictures: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"{name} counts from 1, got 0"):
        embed_on_ray(a_job(pictures), FakeEmbedder, tmp_path / "out", **{name: 0})  # type: ignore[arg-type]


class Run:
    """A job on Ray in a process of its own, and the processes of its workers."""

    def __init__(self, pictures: Path, folder: Path, seconds: float) -> None:
        self.out, self.workers = folder / "out", folder / "workers"
        self.workers.mkdir(exist_ok=True)
        words = [str(pictures), str(self.out), str(self.workers), str(seconds)]
        self.log = (folder / "log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integrations.ray_job", *words],
            cwd=ROOT,
            env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def wait(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not what():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, f"nothing for {PATIENCE} seconds: {self.said()}"
            time.sleep(0.02)

    def num_done(self) -> int:
        return len(list((self.out / "shards").glob("*.json")))

    def alive(self) -> list[int]:
        """Process numbers of the workers that run and have begun a unit."""
        numbers = [int(path.name) for path in self.workers.iterdir() if path.name != HOLD]
        return [number for number in numbers if is_worker(number)]

    def kill_worker(self) -> None:
        """One of two; returns when there are two again."""
        self.wait(lambda: len(self.alive()) == 2)
        killed = self.alive()[0]
        os.kill(killed, signal.SIGKILL)
        self.wait(lambda: killed not in self.alive() and len(self.alive()) == 2)

    def kill(self) -> None:
        """The whole job. Ray's processes see that it is gone and end."""
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL
        deadline = time.monotonic() + PATIENCE
        while self.alive():
            assert time.monotonic() < deadline, f"left over: {self.alive()}"
            time.sleep(0.1)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within the block no unit is finished."""
        (self.workers / HOLD).touch()
        yield
        (self.workers / HOLD).unlink()


def is_worker(number: int) -> bool:
    try:
        return b"ray::" in Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[Path, float], Run]]:
    runs: list[Run] = []

    def begin(pictures: Path, seconds: float) -> Run:
        runs.append(Run(pictures, tmp_path, seconds))
        return runs[-1]

    yield begin
    for run in runs:
        if run.process.poll() is None:
            run.kill()
        run.log.close()


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(8 * PATIENCE)
def test_killed_is_the_same_to_the_byte(tmp_path: Path, start: Callable[[Path, float], Run]) -> None:
    """Killed with -9: a worker, the whole job, the whole job again, and a worker of the last run."""
    pictures = write_folder(tmp_path / "pictures", 61)
    expected = contents(write_embeddings(tmp_path / "local", [pictures]))
    run = start(pictures, 0.5)
    run.wait(lambda: run.num_done() >= 2)
    with run.held():
        run.kill_worker()
    done = run.num_done()
    run.wait(lambda: run.num_done() >= done + 2)
    with run.held():
        run.kill()

    done = run.num_done()
    run = start(pictures, 0.5)
    run.wait(lambda: run.num_done() >= done + 2)
    with run.held():
        run.kill()
        assert not (run.out / "manifest.json").exists()

    run = start(pictures, 0.1)
    with run.held():
        run.kill_worker()
    assert run.process.wait(PATIENCE) == 0, run.said()
    assert contents(run.out) == expected
    manifest = read_manifest(run.out)
    assert (manifest["vectors"], manifest["failures"]) == (61, len(BROKEN))
    errors = [json.loads(line) for line in (run.out / "errors.jsonl").read_text().splitlines()]
    assert Counter(one["key"] for one in errors) == Counter(f"sub/{name}" for name in BROKEN)
    assert all(one["reason"] for one in errors)


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(4 * PATIENCE)
def test_a_picture_that_kills_its_worker_ends_the_job(
    tmp_path: Path, start: Callable[[Path, float], Run]
) -> None:
    pictures = write_folder(tmp_path / "pictures", 8, {"deadly.png": picture(0, DEADLY)})
    run = start(pictures, 0.0)
    assert run.process.wait(3 * PATIENCE) == 1
    assert f"have killed their worker {MAX_TRIES} times" in run.said()
    assert not (run.out / "manifest.json").exists()


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(2 * PATIENCE)
def test_the_command_with_a_model(tmp_path: Path, pictures: Path, golden_dir: GoldenFixtures) -> None:
    """One thread in both runs; the model's path is relative to a folder that workers do not start in."""
    found = golden_dir / "internvl_14b"
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    for name, more in (("local", []), ("ray", ["--ray", "2"])):
        words = [str(pictures), "--out", str(tmp_path / name), "--model", found.name, "--shard", "4"]
        subprocess.run(
            [sys.executable, "-m", "internvl", "embed", *words, "--threads", "1", *more],
            cwd=found.parent,
            env=environment,
            check=True,
            timeout=PATIENCE,
        )
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
