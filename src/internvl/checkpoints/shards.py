"""Weights to disk: sharded safetensors with an index, in a directory that appears whole or not at all.

Streams lazy tensors, so that saving and converting need a few megabytes, not the model again.
Knows no layouts (see `checkpoints.write`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO

import torch

from internvl.checkpoints.lazy import Lazy, pieces
from internvl.checkpoints.weight_files import DTYPES
from internvl.errors import CheckpointError, WeightsError

OF_A_CHECKPOINT = re.compile(
    r".+\.(json|safetensors|bin|pth|gguf|model|txt|jinja|md|py)|(LICENSE|NOTICE)(\..+)?|\.gitattributes|\.gitignore",
    re.IGNORECASE,
)
"""Names of files that may go when a checkpoint is overwritten."""

DESCRIPTIONS = ("config.json", "adapter_config.json")
"""One of them is in every directory that is written here."""

ALIGNMENT = 64
"""Bytes: a line of the processor's caches, which kernels read mapped files by."""

Shard = Sequence[tuple[str, Lazy]]
Progress = Callable[[str, int, int], None]
"""Told after each tensor: its name, bytes written so far, bytes in total."""


@contextmanager
def fresh_directory(directory: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary sibling to fill; it takes the name of `directory` when the block ends well.

    Raises:
        CheckpointError: the directory holds files and `overwrite` is not set, or files that do not
            belong to a checkpoint; or the disk refuses.
    """
    directory = Path(directory).absolute()
    _put_back(directory)
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(f"{directory} is a file, not a directory to save in")
    if directory.is_dir():
        check_replaceable(directory, overwrite=overwrite)
    temporary = directory.with_name(f".{directory.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in [*temporary.iterdir(), temporary]:
            _sync(path)
        _replace(temporary, directory)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {error.filename or directory}: {error.strerror or error}"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_weights(
    tensors: Mapping[str, Lazy],
    directory: Path,
    max_shard_bytes: float = 5e9,
    progress: Progress | None = None,
) -> None:
    """`model.safetensors`, or shards and their index when there is more than `max_shard_bytes`.

    Raises:
        WeightsError: no tensors, or a dtype safetensors does not have.
    """
    if not tensors or max_shard_bytes <= 0:
        raise WeightsError(f"nothing to write: {len(tensors)} tensors in shards of {max_shard_bytes} bytes")
    shards = list(divide(tensors, max_shard_bytes))
    total = sum(num_bytes(tensor) for tensor in tensors.values())
    advance = _counted(progress, total)
    if len(shards) == 1:
        write_safetensors(shards[0], directory / "model.safetensors", advance)
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(shard, directory / name, advance)
        places |= {key: name for key, _ in shard}
    write_json(
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))},
        directory / "model.safetensors.index.json",
    )


def write_safetensors(
    shard: Shard, path: Path, advance: Callable[[str, int], None] = lambda key, size: None
) -> None:
    """One file in which every tensor is aligned to its dtype, and to ALIGNMENT where sizes allow it: those
    that fill whole units come first, then wider dtypes before narrower ones.

    `advance` is called after each tensor, with its name and its bytes.
    """
    ordered = sorted(shard, key=lambda item: (num_bytes(item[1]) % ALIGNMENT > 0, -item[1].dtype.itemsize))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for key, tensor in ordered:
        stop = offset + num_bytes(tensor)
        header[key] = {
            "dtype": _code(key, tensor),
            "shape": list(tensor.shape),
            "data_offsets": [offset, stop],
        }
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key, tensor in ordered:
            _write_values(tensor, file)
            advance(key, num_bytes(tensor))


def write_json(values: Mapping[str, Any], path: Path) -> None:
    """A JSON document in UTF-8. Half of a surrogate pair, which has no bytes there, is the escape that JSON
    has for it."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def num_bytes(tensor: Lazy) -> int:
    return torch.Size(tensor.shape).numel() * tensor.dtype.itemsize


def _counted(progress: Progress | None, total: int) -> Callable[[str, int], None]:
    """`progress`, told what has been written before."""
    done = 0

    def advance(key: str, size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(key, done, total)

    return advance


def _write_values(tensor: Lazy, file: BinaryIO) -> None:
    for start, stop in pieces(tensor, tensor.dtype):
        shape = (stop - start, *tensor.shape[1:]) if tensor.shape else ()
        values = torch.empty(shape, dtype=tensor.dtype)
        tensor.rows(values, start)
        file.write(values.reshape(-1).view(torch.uint8).numpy().data)


def divide(tensors: Mapping[str, Lazy], max_bytes: float) -> Iterator[Shard]:
    """Consecutive tensors, as many as fit; a tensor larger than the limit has a shard of its own."""
    shard: list[tuple[str, Lazy]] = []
    used = 0
    for key, tensor in tensors.items():
        size = num_bytes(tensor)
        if shard and used + size > max_bytes:
            yield shard
            shard, used = [], 0
        shard.append((key, tensor))
        used += size
    yield shard


def _code(key: str, tensor: Lazy) -> str:
    for code, dtype in DTYPES.items():
        if dtype == tensor.dtype:
            return code
    raise WeightsError(f"{key} is {tensor.dtype}, which is not written to safetensors here")


def check_replaceable(directory: Path, *, overwrite: bool) -> None:
    """The directory is replaced as a whole, so nothing but a checkpoint may be in it."""
    entries = sorted(directory.iterdir())
    if not entries:
        return
    if not overwrite:
        raise CheckpointError(
            f"{directory} is not empty; choose another directory or pass overwrite=True (--overwrite)"
        )
    others = [
        f"{entry.name}/" if entry.is_dir() else entry.name
        for entry in entries
        if entry.is_dir() or not OF_A_CHECKPOINT.fullmatch(entry.name)
    ]
    if others:
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        raise CheckpointError(
            f"{directory} is not overwritten: {', '.join(others[:5])}{more} would be lost, which no "
            "checkpoint has; move what you want to keep, or choose another directory"
        )
    if not any((directory / name).is_file() for name in DESCRIPTIONS):
        raise CheckpointError(
            f"{directory} is not overwritten: it has no config.json, so it is not a checkpoint; "
            "remove it yourself, or choose another directory"
        )


def _sync(path: Path) -> None:
    """Names and contents survive a power cut once this returns."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _put_back(directory: Path) -> None:
    """What a process that was killed between the two renames of `_replace` has left under another name."""
    for old in directory.parent.glob(f".{escape(directory.name)}.*.old"):
        if directory.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(directory)


def _replace(temporary: Path, directory: Path) -> None:
    """Put the new directory in place; the old one is moved aside first and removed last."""
    old = temporary.with_suffix(".old")
    if directory.exists():
        directory.rename(old)
    try:
        temporary.rename(directory)
    except OSError:
        if old.exists():
            old.rename(directory)
        raise
    _sync(directory.parent)
    shutil.rmtree(old, ignore_errors=True)
