"""Checkpoints from the hub: fetched once, continued where they broke off, used offline ever after.

Knows the zoo's names and the hub's API; the cache on disk is `checkpoints.snapshot`'s and the choice of
files `checkpoints.selection`'s.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError, the base of all
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # exported lazily

from internvl import zoo
from internvl.checkpoints.nano import assemble
from internvl.checkpoints.selection import choose_files, matching
from internvl.checkpoints.snapshot import Snapshot, find_snapshot, point, storage_of
from internvl.checkpoints.snapshot import is_offline as is_offline
from internvl.errors import HubError, UnknownNameError

_log = logging.getLogger(__name__)
_REPOSITORY = re.compile(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}")
_REVISION = re.compile(r"(?!.*\.\.)[\w][\w./+-]{0,254}")
_NEWEST = "main"


Progress = Callable[[str, int, int | None], None]
"""Called while downloading: file name, its bytes so far, its size (None: the hub did not say)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One revision of one repository, where it is fetched from and where it is kept."""

    repository: str
    revision: str
    endpoint: str
    storage: Path
    file: str | None
    """What is meant of a repository that holds several models; None means its one checkpoint."""


def pull(
    name: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool | None = None,
    allow_patterns: Sequence[str] | None = None,
    endpoint: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Download a checkpoint, or what is missing of it, and return its directory in the cache.

    Args:
        name: a row of the zoo, or any repository as "owner/name".
        revision: branch, tag or commit; the row's own, else the newest.
        cache_dir: the Hugging Face cache by default (HF_HUB_CACHE, HF_HOME); `nano` has its own
            (INTERNVL_CACHE).
        offline: True never asks the network; None follows HF_HUB_OFFLINE.
        allow_patterns: instead of configuration, tokenizer and weights, the files that match one of these.
        endpoint: the hub's address; HF_ENDPOINT by default.

    Raises:
        UnknownNameError: neither a row nor "owner/name".
        HubError: the hub refuses or cannot be reached, the disk is too small or cannot be written, files are
            missing offline; or a revision or a part is asked for of a model that is put together here.
    """
    stays_offline = is_offline() if offline is None else offline
    card = zoo.find_or_none(name)
    if card is not None and card.is_assembled:
        if revision is not None or allow_patterns:
            raise HubError(f"{name} is put together on this machine: it has no revisions and is made whole")
        return assemble(card.name, cache_dir, offline=stays_offline)
    source = _source(name, revision, cache_dir, endpoint)
    allow_patterns = allow_patterns or ([source.file] if source.file else None)
    if stays_offline:
        return _from_cache(source, "the network may not be used (offline)", allow_patterns)
    known = find_snapshot(source.storage, source.revision)
    if known and known.commit == source.revision and not allow_patterns and not known.missing():
        return known.folder
    try:
        commit, sizes = _ask(source)
    except (HTTPError, OfflineModeIsEnabled) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            raise _refused(error, source) from error
        why = f"{source.endpoint} cannot be reached ({type(error).__name__}: {error})"
        return _from_cache(source, why, allow_patterns)
    return _fetch(source, Snapshot(source.storage, commit), sizes, allow_patterns, progress)


def find(
    name: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> Path:
    """The directory or file of a model: from the cache if it is all there, else pulled, if in the zoo.

    Raises:
        UnknownNameError: no such row and no such cached repository.
        HubError: as `pull`; or a row that this version cannot load.
    """
    card = zoo.find_or_none(name)
    if card is not None and card.is_assembled:
        return pull(name, revision=revision, cache_dir=cache_dir, offline=offline)
    source = _source(name, revision, cache_dir, None)
    cached, own = find_snapshot(source.storage, source.revision), source.file or ""
    if cached and not cached.missing() and (cached.folder / own).exists():
        return cached.folder / own
    if cached is None:
        _check_downloadable(name)
    return pull(name, revision=revision, cache_dir=cache_dir, offline=offline, progress=progress) / own


def cache_directory() -> Path:
    """The cache of all Hugging Face libraries: HF_HUB_CACHE, else "hub" in HF_HOME, else the user's."""
    home = os.environ.get("HF_HOME")
    cache = os.environ.get("HF_HUB_CACHE") or (Path(home) / "hub" if home else constants.HF_HUB_CACHE)
    return Path(cache).expanduser()


def _check_downloadable(name: str) -> None:
    """Nobody waits for gigabytes that cannot be loaded, and a typing error does not ask the hub."""
    try:
        card = zoo.find(name)
    except UnknownNameError as error:
        raise UnknownNameError(
            f"no directory {name!r}, not in the cache, and {error}; "
            f"`internvl pull {name}` downloads a repository of the hub"
        ) from error
    if not card.supported:
        raise HubError(
            f"{card.name} cannot be loaded: {card.reason}; "
            f"`internvl pull {card.name}` downloads it all the same"
        )


def _source(name: str, revision: str | None, cache_dir: str | Path | None, endpoint: str | None) -> Source:
    """Of a row, or of a repository outside the zoo."""
    card = None if _REPOSITORY.fullmatch(name) and not zoo.find_or_none(name) else zoo.find(name)
    if card and card.repository is None:
        raise HubError(f"{card.name} is not on the hub: {card.reason or card.source}")
    repository = (card and card.repository) or name
    revision = revision or (card and card.revision) or _NEWEST
    if not _REVISION.fullmatch(revision):
        raise HubError(f"{revision!r} is not a branch, tag or commit")
    cache = Path(cache_dir) if cache_dir else cache_directory()
    return Source(
        repository=repository,
        revision=revision,
        endpoint=(endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/"),
        storage=storage_of(cache.expanduser(), repository),
        file=card.file if card else None,
    )


def _ask(source: Source) -> tuple[str, Mapping[str, int | None]]:
    """The commit and the sizes of all files."""
    api = HfApi(endpoint=source.endpoint, library_name="internvl")
    try:
        info = api.model_info(source.repository, revision=source.revision, files_metadata=True)
    except HFValidationError as error:
        raise HubError(f"{source.repository!r} is not a repository of the hub: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise HubError(
            f"{source.endpoint} does not answer like a hub ({error}): check HF_ENDPOINT"
        ) from error
    if not info.sha:
        raise HubError(f"{source.endpoint} named no commit for {source.repository}@{source.revision}")
    return info.sha, {file.rfilename: file.size for file in info.siblings or ()}


def _whole(sizes: Mapping[str, int | None]) -> tuple[str, ...]:
    """The files of the checkpoint, also when only some are pulled: the cache must know what it lacks."""
    try:
        return choose_files(sizes)
    except HubError:
        return ()


def _from_cache(source: Source, why: str, patterns: Sequence[str] | None) -> Path:
    snapshot = find_snapshot(source.storage, source.revision)
    missing = snapshot.missing() if snapshot else ()
    if missing and patterns is not None:
        missing = matching(missing, patterns)
    if snapshot and not missing:
        _log.info("%s is taken from the cache: %s", source.repository, why)
        return snapshot.folder
    lack = f"the cache lacks {_some(missing)}" if missing else "nothing of it is in the cache"
    raise HubError(
        f"{source.repository}@{source.revision}: {why}, and {lack} ({source.storage}); pull it while online"
    )


def _fetch(
    source: Source,
    snapshot: Snapshot,
    sizes: Mapping[str, int | None],
    patterns: Sequence[str] | None,
    progress: Progress | None,
) -> Path:
    """Downloads what is wanted of all files; what the cache then knows outlives an interruption."""
    wanted = choose_files(sizes, patterns)
    try:
        snapshot.record({file: sizes[file] for file in sorted({*wanted, *_whole(sizes)})})
        point(source.storage, source.revision, snapshot.commit, only_new=True)
        _download(source, snapshot, {file: sizes[file] for file in wanted}, progress)
        point(source.storage, source.revision, snapshot.commit)
    except OSError as error:
        raise HubError(
            f"{source.storage} cannot be written ({type(error).__name__}: {error}): mend that, or let "
            "HF_HUB_CACHE name another directory"
        ) from error
    return snapshot.folder


def _download(
    source: Source, snapshot: Snapshot, sizes: Mapping[str, int | None], progress: Progress | None
) -> None:
    missing = [file for file in snapshot.missing() if file in sizes]
    _check_space(source, [sizes[file] or 0 for file in missing])
    headers = build_hf_headers(library_name="internvl")
    try:
        for file in missing:
            _log.info("downloading %s of %s", file, source.repository)
            url = hf_hub_url(source.repository, file, revision=snapshot.commit, endpoint=source.endpoint)
            metadata = get_hf_file_metadata(url, endpoint=source.endpoint)
            if not metadata.etag:
                raise HubError(f"{url} has no ETag: {source.endpoint} is not a hub, check HF_ENDPOINT")
            size = sizes[file] if metadata.size is None else metadata.size

            def advance(done: int, file: str = file, size: int | None = size) -> None:
                if progress:
                    progress(file, done, size)

            snapshot.fetch(file, url, metadata.etag, size, headers, advance)
    except HfHubHTTPError as error:
        raise _refused(error, source) from error
    except (HTTPError, OSError) as error:
        raise HubError(
            f"{source.repository}: the download broke off at {file} ({type(error).__name__}: {error}); "
            "what has arrived is kept, pull again to continue"
        ) from error
    if broken := [file for file in snapshot.missing() if file in sizes]:
        raise HubError(f"{source.repository}: wrong size after the download: {_some(broken)}; pull again")


def _check_space(source: Source, sizes: Sequence[int]) -> None:
    """Files that are half there count with what is still to come."""
    partial = sum(path.stat().st_size for path in source.storage.glob("blobs/*.incomplete"))
    needed = sum(sizes) - partial
    place = next(path for path in (source.storage, *source.storage.parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise HubError(
            f"{source.repository} needs {needed / 1e9:.2f} GB more, but {place} has {free / 1e9:.2f} GB "
            "free: make room, or let HF_HUB_CACHE name a directory on a larger disk"
        )


def _refused(error: HfHubHTTPError, source: Source) -> HubError:
    """What an answer of the hub means and what helps."""
    status, where = error.response.status_code, f"{source.endpoint}/{source.repository}"
    if isinstance(error, GatedRepoError) or status == 403:
        return HubError(f"{where} is gated: accept its terms there, then set HF_TOKEN ({status})")
    if isinstance(error, RevisionNotFoundError):
        return HubError(f"{where} has no revision {source.revision!r} ({status})")
    if status == 401:
        return HubError(f"{where} does not exist, or is private or gated: set HF_TOKEN to see it ({status})")
    if status == 404:
        at = "" if source.revision == _NEWEST else f", or has no revision {source.revision!r}"
        return HubError(f"{where} does not exist{at} ({status})")
    return HubError(f"{where}: the hub answered {status}: {error}")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
