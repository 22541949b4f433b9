"""The folder of a job: shards that appear whole or not at all, and what is left to do.

    job.json            the job, written first; another one is refused
    shards/000000.*     a unit's files, then its receipt 000000.json: with it the unit is done
    errors.jsonl        the pictures that have no vector, with key and reason, in order
    manifest.json       the job and its shards with their checksums, written last

A process may be killed at any moment: what has no receipt is done again, to the same bytes. Knows files; no
pictures and no vectors.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from internvl.data.source_json import load_json
from internvl.errors import InputError
from internvl.search.job import Job, Unit, plan
from internvl.search.shards import Shard, describe, dump

JOB, MANIFEST, ERRORS, SHARDS = "job.json", "manifest.json", "errors.jsonl", "shards"
FORMAT = "internvl-embeddings-1"
MAX_JSON_BYTES = 1 << 30
PARTIAL = ".partial"
OURS = re.compile(
    rf"\.((job|manifest)\.json|errors\.jsonl|\d{{6,}}\.(parquet|npy|jsonl|json))\.[0-9a-f]{{32}}{re.escape(PARTIAL)}"
)
"""Names of all files here while they are written (`write_whole`); any other is a user's."""


@contextmanager
def claimed(folder: Path, job: Job) -> Iterator[None]:
    """Makes the folder this job's and keeps other processes out of it within the block.

    Half-written files of a process that was killed are removed, once the folder is known to be this job's.
    Raises InputError where it holds another job or something else, or while another process works in it.
    """
    with locked(folder):
        _check(folder, job)
        (folder / SHARDS).mkdir(exist_ok=True)
        for place in (folder, folder / SHARDS):
            for path in list(place.iterdir()):
                if OURS.fullmatch(path.name):
                    path.unlink()
        yield


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder and keeps other processes out of it within the block. Raises InputError while another
    process works in it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def pending(folder: Path, job: Job) -> tuple[Unit, ...]:
    """The units that are still to be done, in order."""
    return tuple(unit for unit in plan(job) if not _is_done(folder, unit))


def store(folder: Path, shard: Shard) -> None:
    """The shard's files, then its receipt, on disk. Two processes may do this at once with equal bytes."""
    for name, content in shard.files.items():
        write_whole(folder / SHARDS / name, content)
    write_whole(_receipt(folder, shard.unit), shard.receipt)


def finish(folder: Path, job: Job) -> dict[str, Any]:
    """Writes the error table and the manifest of a job whose units are all done; returns the manifest.

    Raises InputError where a unit is not done.
    """
    shards = []
    table = bytearray()
    num_failures = 0
    for unit in plan(job):
        receipt = read_receipt(folder, unit)
        shards.append({"name": unit.name, "vectors": receipt["vectors"], "files": receipt["files"]})
        num_failures += len(receipt["failures"])
        for failure in receipt["failures"]:
            table += f"{json.dumps(failure, ensure_ascii=False)}\n".encode("utf-8", "backslashreplace")
    write_whole(folder / ERRORS, bytes(table))
    manifest = {
        "format": FORMAT,
        "job": job.as_json(),
        "vectors": sum(shard["vectors"] for shard in shards),
        "failures": num_failures,
        "errors": describe(ERRORS, bytes(table)),
        "shards": shards,
    }
    write_whole(folder / MANIFEST, dump(manifest))
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished job. Raises InputError."""
    path = folder / MANIFEST
    if not path.is_file():
        begun = (
            " (its job has not finished: run the same `internvl embed` again)" if _holds_job(folder) else ""
        )
        raise InputError(f"{folder} holds no embeddings{begun}: there is no {MANIFEST}")
    manifest = load_json(path, MAX_JSON_BYTES, "that is no manifest")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{path} is not of the format {FORMAT}")
    return manifest


def read_receipt(folder: Path, unit: Unit) -> dict[str, Any]:
    """The receipt of a unit. Raises InputError where it is missing or another's."""
    path = _receipt(folder, unit)
    receipt = load_json(path, MAX_JSON_BYTES, "that is no receipt")
    place = {"number": unit.number, "start": unit.start, "stop": unit.stop}
    if not isinstance(receipt, dict) or any(receipt.get(name) != value for name, value in place.items()):
        raise InputError(f"{path} is not the receipt of rows {unit.start} to {unit.stop}; delete it")
    return receipt


def write_whole(path: Path, content: bytes) -> None:
    """A file that is there complete or not at all, even if the machine goes down meanwhile."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems do not sync folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_done(folder: Path, unit: Unit) -> bool:
    """Whether the receipt is there and the files have the sizes that it says."""
    if not _receipt(folder, unit).is_file():
        return False
    files: list[Mapping[str, Any]] = read_receipt(folder, unit)["files"]
    paths = [folder / SHARDS / file["name"] for file in files]
    return all(
        path.is_file() and path.stat().st_size == file["bytes"]
        for path, file in zip(paths, files, strict=True)
    )


def _receipt(folder: Path, unit: Unit) -> Path:
    return folder / SHARDS / f"{unit.name}.json"


def _holds_job(folder: Path) -> bool:
    return (folder / JOB).is_file()


def _lock(descriptor: int, folder: Path) -> None:
    """Until the descriptor is closed, however the process ends. File systems without locks let all in."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as reason:
        raise InputError(f"another process is writing to {folder}: wait for it or stop it") from reason
    except OSError:
        return


def _check(folder: Path, job: Job) -> None:
    path = folder / JOB
    if not path.is_file():
        others = sorted(child.name for child in folder.iterdir() if not OURS.fullmatch(child.name))
        if others:
            raise InputError(f"{folder} holds other files ({others[0]}); name an empty or new folder")
        write_whole(path, dump(job.as_json()))
        return
    before = _plain(Job.from_json(load_json(path, MAX_JSON_BYTES, "that is no job")))
    now = _plain(job)
    for name in (name for name in now if now[name] != before[name]):
        if name == "fingerprint":
            raise InputError(
                f"{folder} was begun with other files: the inputs have changed since; name a new folder"
            )
        raise InputError(
            f"{folder} was begun with {name} = {before[name]!r}, now it is {now[name]!r}; continue with "
            "the same settings, or name a new folder"
        )


def _plain(job: Job) -> dict[str, Any]:
    """Its fields as they are read from disk."""
    fields: dict[str, Any] = json.loads(dump(job.as_json()))
    return fields
