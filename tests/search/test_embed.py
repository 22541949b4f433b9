"""Jobs: every picture in a shard or in the table of errors, and the same bytes however often they begin."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from internvl.errors import InputError
from internvl.processing.image import load_image
from internvl.search.embed import ahead, embed, make_job, run_unit
from internvl.search.folder import claimed, pending, read_manifest, store
from internvl.search.inputs import Inputs
from internvl.search.job import Form, plan
from internvl.search.vectors import Embeddings
from tests.conftest import ROOT
from tests.search.fakes import BROKEN, FakeEmbedder, contents, picture, write_embeddings, write_folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "pictures", 17)


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_every_picture_is_in_a_shard_or_an_error(tmp_path: Path, pictures: Path, form: Form) -> None:
    out = write_embeddings(tmp_path / "out", [pictures], form=form)
    manifest = read_manifest(out)
    assert (manifest["vectors"], manifest["failures"], manifest["job"]["rows"]) == (17, 4, 21)
    entries = [entry for part, _ in Embeddings(out).parts() for entry in part]
    errors = [json.loads(line) for line in (out / "errors.jsonl").read_text().splitlines()]
    rows = [one.row for one in entries] + [one["row"] for one in errors]
    assert sorted(rows) == list(range(21))
    assert [one["key"] for one in errors] == [f"sub/{name}" for name in sorted(BROKEN)]
    assert all(one["reason"] and one["where"] == str(pictures / one["key"]) for one in errors)
    assert errors[2]["reason"] == "a picture of 3 x 3 pixels is not liked"


def test_vectors_are_those_of_the_embedder(tmp_path: Path, pictures: Path) -> None:
    out = write_embeddings(tmp_path / "out", [pictures])
    embedder = FakeEmbedder()
    for entries, vectors_BE in Embeddings(out).parts():
        for entry, vector_E in zip(entries, vectors_BE, strict=True):
            tile_3SS = embedder.prepare(load_image(pictures / entry.key))
            np.testing.assert_allclose(vector_E, embedder.embed(tile_3SS[None])[0], rtol=1e-4, atol=1e-5)


def test_float16(tmp_path: Path, pictures: Path) -> None:
    whole, half = (
        np.concatenate([part for _, part in Embeddings(out).parts()])
        for out in (
            write_embeddings(tmp_path / "a", [pictures]),
            write_embeddings(tmp_path / "b", [pictures], precision="float16"),
        )
    )
    np.testing.assert_array_equal(half, whole.astype(np.float16).astype(np.float32))


def test_a_vector_that_is_no_number_is_an_error(tmp_path: Path, pictures: Path) -> None:
    class Overflowing(FakeEmbedder):
        def embed(self, tiles_B3SS: Tensor) -> Tensor:
            vectors_BE = super().embed(tiles_B3SS)
            vectors_BE[0, 0] = 1e6
            return vectors_BE

    inputs, embedder = Inputs([pictures]), Overflowing()
    job = make_job(inputs, embedder, precision="float16", shard_rows=4, batch=3)
    manifest = embed(job, inputs, embedder, tmp_path / "out")
    assert manifest["vectors"] + manifest["failures"] == 21
    assert manifest["failures"] == 4 + len(embedder.batches)
    assert "not finite in float16" in (tmp_path / "out" / "errors.jsonl").read_text()


def test_units_can_be_done_in_any_order_by_any_number_of_readers(tmp_path: Path, pictures: Path) -> None:
    expected = contents(write_embeddings(tmp_path / "a", [pictures]))
    out = tmp_path / "b"
    inputs, embedder = Inputs([pictures]), FakeEmbedder()
    job = make_job(inputs, embedder, shard_rows=4, batch=3)
    with claimed(out, job), ThreadPoolExecutor(5) as readers:
        for unit in (*reversed(plan(job)), plan(job)[1]):
            store(out, run_unit(unit, job, Inputs(job.inputs, job.columns), FakeEmbedder(), readers))
    embed(job, inputs, embedder, out)
    assert embedder.batches == []
    assert contents(out) == expected


def start(pictures: Path, out: Path, form: str, seconds: float) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "tests.search.fakes", str(pictures), str(out), form, str(seconds)]
    return subprocess.Popen(words, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_killed_three_times_is_the_same_to_the_byte(tmp_path: Path, pictures: Path, form: Form) -> None:
    expected = contents(write_embeddings(tmp_path / "a", [pictures], form=form))
    out = tmp_path / "b"
    for number in range(3):
        process = start(pictures, out, form, 0.3)
        deadline = time.monotonic() + 120
        while len(list((out / "shards").glob("*.json"))) <= number and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        (out / "shards" / f".000009.parquet.{number:032x}.partial").write_bytes(b"half")
    assert not (out / "manifest.json").exists()
    write_embeddings(out, [pictures], form=form)
    assert contents(out) == expected


@pytest.mark.parametrize("moment", range(1, 15))
def test_killed_between_any_two_files(
    tmp_path: Path, pictures: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends after any number of files was given its name."""
    expected = contents(write_embeddings(tmp_path / "a", [pictures]))
    replaced = 0
    real = Path.replace

    def replace_some(self: Path, target: Path) -> Path:
        nonlocal replaced
        replaced += 1
        if replaced > moment:
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace_some)
        if moment < len(expected):
            with pytest.raises(KeyboardInterrupt):
                write_embeddings(tmp_path / "b", [pictures])
    write_embeddings(tmp_path / "b", [pictures])
    assert contents(tmp_path / "b") == expected


def test_a_shard_that_was_cut_off_is_done_again(tmp_path: Path, pictures: Path) -> None:
    out = write_embeddings(tmp_path / "out", [pictures])
    expected = contents(out)
    (out / "shards" / "000002.parquet").write_bytes(b"half")
    (out / "shards" / "000003.parquet").unlink()
    inputs, embedder = Inputs([pictures]), FakeEmbedder()
    job = make_job(inputs, embedder, shard_rows=4, batch=3)
    assert [unit.number for unit in pending(out, job)] == [2, 3]
    embed(job, inputs, embedder, out)
    assert contents(out) == expected


def test_another_job_is_refused(tmp_path: Path, pictures: Path) -> None:
    out = write_embeddings(tmp_path / "out", [pictures])
    before = contents(out)
    with pytest.raises(InputError, match="batch = 3, now it is 2"):
        write_embeddings(out, [pictures], batch=2)
    inputs = Inputs([pictures])
    other = FakeEmbedder(seed=1)
    with pytest.raises(InputError, match="'weights': '1'"):
        embed(make_job(inputs, other, shard_rows=4, batch=3), inputs, other, out)
    with pytest.raises(InputError, match="the job is for"):
        embed(make_job(inputs, FakeEmbedder()), inputs, other, out)
    (pictures / "zzz.png").write_bytes(picture(99))
    with pytest.raises(InputError, match="rows = 21, now it is 22"):
        write_embeddings(out, [pictures])
    (pictures / "zzz.png").unlink()
    (pictures / "0000.png").write_bytes(picture(99))
    with pytest.raises(InputError, match="changed since"):
        write_embeddings(out, [pictures])
    assert contents(out) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match=r"other files \(letter.txt\)"):
        write_embeddings(tmp_path / "mine", [pictures])


HALF = ".000000.parquet." + "0" * 32 + ".partial"
"""What a process that was killed has left."""

OF_A_USER = (".notes.partial", "deep/.notes.partial", f"deep/{HALF}", ".000000.png" + HALF[15:])


def write_files(folder: Path, *names: str) -> dict[str, bytes]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return {name: name.encode() for name in names}


@pytest.mark.parametrize("name", OF_A_USER)
def test_files_in_a_folder_of_a_user_stay(tmp_path: Path, pictures: Path, name: str) -> None:
    before = write_files(tmp_path / "home", name, f"shards/{HALF}")
    with pytest.raises(InputError, match="holds other files"):
        write_embeddings(tmp_path / "home", [pictures])
    assert contents(tmp_path / "home") == before


def test_half_written_files_stay_with_another_job(tmp_path: Path, pictures: Path) -> None:
    out = write_embeddings(tmp_path / "out", [pictures])
    write_files(out, HALF, f"shards/{HALF}")
    before = contents(out)
    with pytest.raises(InputError, match="batch = 3, now it is 2"):
        write_embeddings(out, [pictures], batch=2)
    assert contents(out) == before


def test_only_half_written_files_of_ours_are_removed(tmp_path: Path, pictures: Path) -> None:
    expected = contents(write_embeddings(tmp_path / "out", [pictures]))
    theirs = write_files(tmp_path / "out", *OF_A_USER)
    write_files(tmp_path / "out", ".manifest.json" + HALF[15:], f"shards/{HALF}")
    write_embeddings(tmp_path / "out", [pictures])
    assert contents(tmp_path / "out") == {**expected, **theirs}


def test_killed_while_the_job_was_written(tmp_path: Path, pictures: Path) -> None:
    expected = contents(write_embeddings(tmp_path / "a", [pictures]))
    write_files(tmp_path / "b", ".job.json" + HALF[15:])
    assert contents(write_embeddings(tmp_path / "b", [pictures])) == expected


def test_one_process_at_a_time(tmp_path: Path, pictures: Path) -> None:
    job = make_job(Inputs([pictures]), FakeEmbedder(), shard_rows=4, batch=3)
    with claimed(tmp_path / "out", job), pytest.raises(InputError, match="another process"):
        write_embeddings(tmp_path / "out", [pictures])


def test_inputs_that_changed_meanwhile_are_refused(tmp_path: Path, pictures: Path) -> None:
    inputs, embedder = Inputs([pictures]), FakeEmbedder()
    job = replace(make_job(inputs, embedder), fingerprint="another")
    with pytest.raises(InputError, match="changed since the job was made"):
        embed(job, inputs, embedder, tmp_path / "out")


def test_an_embedder_of_a_wrong_shape_is_refused(tmp_path: Path, pictures: Path) -> None:
    class Wrong(FakeEmbedder):
        def embed(self, tiles_B3SS: Tensor) -> Tensor:
            return torch.zeros(len(tiles_B3SS), 2)

    inputs, embedder = Inputs([pictures]), Wrong()
    with pytest.raises(InputError, match=r"\(8, 2\), not 6 wide"):
        embed(make_job(inputs, embedder), inputs, embedder, tmp_path / "out")


def test_progress_counts_rows(tmp_path: Path, pictures: Path) -> None:
    inputs, embedder = Inputs([pictures]), FakeEmbedder()
    seen: list[tuple[int, int]] = []
    job = make_job(inputs, embedder, shard_rows=10)
    for _ in range(2):
        embed(
            job, inputs, embedder, tmp_path / "out", progress=lambda done, total: seen.append((done, total))
        )
    assert seen == [(0, 21), (10, 21), (20, 21), (21, 21), (21, 21)]


def test_reading_ahead_is_bounded_and_in_order() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        return number * number

    with ThreadPoolExecutor(3) as readers:
        found = ahead(readers, work, range(20), 4)
        assert next(found) == 0
        assert max(begun) <= 3
        assert list(found) == [number * number for number in range(1, 20)]
