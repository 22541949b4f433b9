"""Files of one commit of a hub repository, in the cache that all Hugging Face libraries share.

    models--owner--name/
    ├── refs/main              the commit that a branch or tag means
    ├── blobs/<etag>           contents; `<etag>.incomplete` while they are being downloaded
    ├── snapshots/<commit>/    names, as links to blobs
    └── listings/<commit>.json the files that were asked for and their sizes (ours)

Knows the disk and plain HTTP; which files are wanted and what errors mean is `checkpoints.hub`'s.
Partial files are kept and continued by a later run, which huggingface_hub no longer does.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import get_session, hf_raise_for_status, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]  # base of all
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # exported lazily

from internvl.errors import HubError

Advance = Callable[[int], None]
"""Called with the bytes of a file that are on disk."""

RETRIES = 5
WAIT_SECONDS = 1.0
TIMEOUT_SECONDS = 30.0
_CHUNK = 1 << 20
_PARTIAL_CONTENT, _RANGE_NOT_SATISFIABLE = 206, 416
_WORTH_RETRYING = frozenset({408, _RANGE_NOT_SATISFIABLE, 429, 500, 502, 503, 504})
_SAFE_NAME = re.compile(r"[\w-]{1,128}")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One commit of the repository kept in `storage`."""

    storage: Path
    commit: str

    def __post_init__(self) -> None:
        _checked(self.commit, "commit")

    @property
    def folder(self) -> Path:
        return self.storage / "snapshots" / self.commit

    @property
    def _listing(self) -> Path:
        return self.storage / "listings" / f"{self.commit}.json"

    def _lock(self, name: str) -> Path:
        return self.storage.parent / ".locks" / self.storage.name / f"{name}.lock"

    def record(self, files: Mapping[str, int | None]) -> None:
        """Remember what belongs to this snapshot, so that it can be checked without the network."""
        with alone(self._lock(f"listing-{self.commit}")):
            known = self._recorded() or {}
            write_atomically(self._listing, json.dumps({**known, **files}, indent=1))

    def missing(self) -> tuple[str, ...]:
        """Names of files that are absent or have the wrong size.

        Without a record (another program filled the cache) the names follow from the shards' index.
        """
        files = self._recorded()
        if files is None:
            return self._missing_by_structure()
        return tuple(name for name, size in files.items() if not self._has(name, size))

    def _has(self, name: str, size: int | None) -> bool:
        path = self.folder / name
        return path.is_file() and size in (None, path.stat().st_size)

    def _recorded(self) -> Mapping[str, int | None] | None:
        files = _read_json(self._listing)
        return files if isinstance(files, dict) else None

    def _missing_by_structure(self) -> tuple[str, ...]:
        lacking = [] if self._has("config.json", None) else ["config.json"]
        for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
            table = _read_json(self.folder / index)
            if isinstance(table, dict) and isinstance(table.get("weight_map"), dict):
                shards = sorted({str(shard) for shard in table["weight_map"].values()})
                return (*lacking, *(shard for shard in shards if not self._has(shard, None)))
        whole = [*self.folder.glob("*.safetensors"), *self.folder.glob("*.bin")]
        return (*lacking, *([] if whole else ["model.safetensors"]))

    def fetch(
        self, name: str, url: str, etag: str, size: int | None, headers: Mapping[str, str], advance: Advance
    ) -> None:
        """Download one file, continuing what an earlier run began.

        Raises HubError for a wrong size or contents, the transport's own errors, and OSError for a full disk.
        """
        blob = self.storage / "blobs" / _checked(etag, "ETag")
        for folder in (blob.parent, (self.folder / name).parent):
            folder.mkdir(parents=True, exist_ok=True)
        with alone(self._lock(etag)):
            if not (blob.is_file() and size in (None, blob.stat().st_size)):
                partial = blob.with_name(f"{etag}.incomplete")
                is_resumed = _size(partial) > 0
                download(url, partial, size, headers, advance)
                if is_resumed:
                    _verify(partial, etag, name)
                partial.replace(blob)
            _link(blob, self.folder / name)
            advance(_size(blob))


def storage_of(cache_dir: Path, repository: str) -> Path:
    return cache_dir / f"models--{repository.replace('/', '--')}"


def find_snapshot(storage: Path, revision: str) -> Snapshot | None:
    """The snapshot a branch, tag or commit means according to the cache alone."""
    ref = storage / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    snapshot = Snapshot(storage, commit) if _SAFE_NAME.fullmatch(commit) else None
    return snapshot if snapshot and (snapshot.folder.is_dir() or snapshot._listing.is_file()) else None


def point(storage: Path, revision: str, commit: str, *, only_new: bool = False) -> None:
    """Let a branch or tag mean a commit; with `only_new`, unless it means one already."""
    ref = storage / "refs" / revision
    if revision != commit and not (only_new and ref.is_file()):
        write_atomically(ref, commit)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network, now or when huggingface_hub was imported."""
    return is_offline_mode() or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Waits until no other process or thread is in such a block with this file, which is made."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        yield


def write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A free name beside `path` to make a file of; it takes the place of `path` when the block ends well."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def download(url: str, path: Path, size: int | None, headers: Mapping[str, str], advance: Advance) -> None:
    """Append to `path` until it has `size` bytes; a cut connection is taken up again where it broke."""
    failures = 0
    while True:
        start = _size(path)
        if start and start == size:
            return
        try:
            _stream(url, path, start if size is None or start < size else 0, headers, advance)
            break
        except HTTPError as error:
            failures = 1 if _size(path) > start else failures + 1
            if failures > RETRIES or not _is_passing(error):
                raise
            if isinstance(error, HfHubHTTPError) and error.response.status_code == _RANGE_NOT_SATISFIABLE:
                path.unlink(missing_ok=True)
            time.sleep(WAIT_SECONDS)
    received = path.stat().st_size
    if size is not None and received != size:
        path.unlink()
        raise HubError(f"{url} should have {size:,} bytes but sent {received:,}: try again later")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _is_passing(error: HTTPError) -> bool:
    """Whether the same request may work a moment later."""
    return not isinstance(error, HfHubHTTPError) or error.response.status_code in _WORTH_RETRYING


def _stream(url: str, path: Path, start: int, headers: Mapping[str, str], advance: Advance) -> None:
    """One request for the bytes from `start`; a server that ignores ranges makes us begin anew."""
    wanted = {**headers, "Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with get_session().stream(
        "GET", url, headers=wanted, follow_redirects=True, timeout=TIMEOUT_SECONDS
    ) as response:
        hf_raise_for_status(response)
        is_continued = start > 0 and response.status_code == _PARTIAL_CONTENT
        with path.open("ab" if is_continued else "wb") as file:
            for chunk in response.iter_bytes():
                file.write(chunk)
                advance(file.tell())


def _verify(path: Path, etag: str, name: str) -> None:
    """Contents put together from two runs must have the checksum that the hub uses as ETag."""
    if len(etag) == 64:
        digest = hashlib.sha256()
    elif len(etag) == 40:
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    else:
        return
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != etag:
        path.unlink()
        raise HubError(f"{name} was continued from an earlier run and its checksum is wrong: pull again")


def _link(blob: Path, pointer: Path) -> None:
    """A relative link, or a copy where the file system has no links. Others may be reading it meanwhile."""
    if pointer.exists() and pointer.samefile(blob):
        return
    with _replacing(pointer) as temporary:
        try:
            temporary.symlink_to(os.path.relpath(blob, pointer.parent))
        except OSError:
            shutil.copyfile(blob, temporary)


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _checked(name: str, what: str) -> str:
    """What the server calls a thing becomes a file name here: nothing but letters, digits, - and _."""
    if not _SAFE_NAME.fullmatch(name):
        raise HubError(f"the server sent {name[:80]!r} as {what}, which cannot be a file name")
    return name
