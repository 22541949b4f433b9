"""A directory or file of weights as lazy tensors: which files belong to it, single or sharded.

Knows names of files, not what is in the tensors (see `checkpoints.layouts`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from internvl.checkpoints.lazy import Lazy
from internvl.checkpoints.weight_files import SUFFIXES, read_file
from internvl.errors import CheckpointError, WeightsError

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
NOT_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|rng_state|expected|adapter_).*")
SHARD = re.compile(r".+-(\d+)-of-(\d+)\.(safetensors|bin)")
MAX_INDEX_BYTES = 64 << 20


def read_tensors(path: str | Path) -> dict[str, Lazy]:
    """All tensors of a checkpoint directory or of one weight file, unread.

    Raises:
        CheckpointError: no such place, or it cannot be read.
        WeightsError: no weights there; a truncated, corrupt or missing shard; an index that does
            not fit its shards; a pickle that holds more than tensors.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _read_directory(path)
        if path.is_file():
            return dict(read_file(path))
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename or path}: {error.strerror}") from error
    raise CheckpointError(f"no such file or directory: {path}")


def _read_directory(directory: Path) -> dict[str, Lazy]:
    for single, index in zip(SINGLE_FILES, INDEX_FILES, strict=True):
        if (directory / single).is_file():
            return dict(read_file(directory / single))
        if (directory / index).is_file():
            return _read_shards(directory / index)
    found = sorted(
        entry.name
        for entry in directory.iterdir()
        if entry.suffix in SUFFIXES and not NOT_WEIGHTS.fullmatch(entry.name)
    )
    if len(found) == 1 and not SHARD.fullmatch(found[0]):
        return dict(read_file(directory / found[0]))
    if any(SHARD.fullmatch(name) for name in found):
        raise WeightsError(f"{directory} has shards ({', '.join(found[:3])} ...) but none of {INDEX_FILES}")
    listed = f"it has {', '.join(found)}" if found else "there is no .safetensors, .bin or .pth file"
    raise WeightsError(
        f"{directory} holds no weights under a known name ({' or '.join(SINGLE_FILES)}): {listed}"
    )


def _read_shards(index: Path) -> dict[str, Lazy]:
    tensors: dict[str, Lazy] = {}
    places = _weight_map(index)
    for name in sorted(set(places.values())):
        shard = index.parent / name
        if not shard.is_file():
            count = sum(place == name for place in places.values())
            raise WeightsError(f"{index.name} puts {count} tensors in {name}, which is not in {index.parent}")
        for key, tensor in read_file(shard).items():
            if key in tensors:
                raise WeightsError(f"{key} is in two shards of {index.parent}; one of them is {name}")
            tensors[key] = tensor
    lost = [key for key in places if key not in tensors]
    if lost:
        raise WeightsError(
            f"{index.name} puts {lost[0]} in {places[lost[0]]}, but that file does not hold it "
            f"({len(lost)} such tensors): the shards belong to another checkpoint"
        )
    return tensors


def _weight_map(index: Path) -> Mapping[str, str]:
    """Key to shard; shards are plain names beside the index."""
    places = read_json(index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise WeightsError(f"{index} has no weight_map from tensor names to file names")
    for place in places.values():
        if Path(place).name != place or Path(place).suffix not in SUFFIXES:
            raise WeightsError(f"{index} names {place!r}, which is not a weight file beside it")
    return places


def read_json(path: Path, limit: int = 16 << 20) -> dict[str, object]:
    """A JSON object from a file of bounded size.

    Raises:
        CheckpointError: unreadable, too large, or not a JSON object.
    """
    try:
        if path.stat().st_size > limit:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes; over {limit} it is not read")
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds a JSON {type(loaded).__name__}, not an object")
    return loaded
