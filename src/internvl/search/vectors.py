"""The finished embeddings of a job, read shard by shard with their checksums, and the pictures behind them.

Knows the folder of a job; no model and no index. Shape letters: B pictures, E width of the vectors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from internvl.errors import InputError
from internvl.search.folder import MANIFEST, SHARDS, read_manifest
from internvl.search.inputs import Inputs
from internvl.search.job import Job
from internvl.search.shards import Entry, read_shard


class Embeddings:
    """The folder that `internvl embed` wrote. Raises InputError for one that is unfinished or damaged."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        self._manifest = read_manifest(self.folder)
        try:
            self.job = Job.from_json(self._manifest["job"])
            self._shards = [
                (int(shard["vectors"]), [_listed(file) for file in shard["files"]])
                for shard in self._manifest["shards"]
            ]
        except (KeyError, TypeError, ValueError) as reason:
            raise InputError(f"{self.folder / MANIFEST} is no manifest of embeddings: {reason}") from reason

    @property
    def digest(self) -> str:
        """Stands for everything in the folder."""
        return hashlib.sha256(json.dumps(self._manifest, sort_keys=True).encode()).hexdigest()

    def __len__(self) -> int:
        """The number of vectors."""
        return sum(count for count, _ in self._shards)

    def parts(self) -> Iterator[tuple[list[Entry], NDArray[np.float32]]]:
        """Entries and vectors (B, E) of every shard, in order. Raises InputError for a changed file."""
        for count, files in self._shards:
            contents = [self._read(name, digest) for name, digest in files]
            where = str(self.folder / SHARDS / files[0][0])
            yield read_shard(contents, self.job.form, count, self.job.width, where)

    @cached_property
    def inputs(self) -> Inputs:
        """What the job read, opened again: `items` of a row gives the picture. Raises InputError."""
        return Inputs(self.job.inputs, self.job.columns)

    def picture(self, row: int, number: int, key: str) -> Any:
        """What `load_image` takes. Raises InputError where another picture stands in its place now, and no
        file has its name."""
        try:
            item = self.inputs.items(row)[number]
        except IndexError:
            item = None
        if item is not None and item.key == key:
            return item.source
        found = self.inputs.find(key)
        if found is None:
            raise InputError(f"{key} is no longer row {row} of the inputs: they have changed since")
        return found

    def _read(self, name: str, digest: str) -> bytes:
        path = self.folder / SHARDS / name
        try:
            content = path.read_bytes()
        except OSError as reason:
            raise InputError(f"cannot read {path}: {reason}") from reason
        if hashlib.sha256(content).hexdigest() != digest:
            raise InputError(f"{path} is not what was written; delete it and run `internvl embed` again")
        return content


def _listed(file: Mapping[str, Any]) -> tuple[str, str]:
    """Name and checksum of a file in the folder of shards. Raises ValueError for a path out of it."""
    name, digest = file["name"], file["sha256"]
    if not isinstance(name, str) or not isinstance(digest, str) or Path(name).name != name:
        raise ValueError(f"a file called {name!r}")
    return name, digest
