"""One file of weights as lazy tensors: safetensors, or a torch file opened without running pickles.

Only headers are read here. Values are read later, straight into the storage that asks for them, so
that no mapped pages pile up. Knows no directories and no layouts.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from internvl.checkpoints.lazy import Lazy, rows_at_once, section
from internvl.errors import WeightsError

SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
WRAPPERS = ("module", "state_dict", "model")
"""Keys under which training code files the weights, outermost first."""

MAX_HEADER_BYTES = 100 << 20
REMAP_BYTES = 16 << 20
"""A torch file is mapped afresh after this much was read, to give its pages back."""

DTYPES: Final[Mapping[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""What safetensors calls a dtype, as far as InternVL checkpoints use it."""


class Entry(NamedTuple):
    """One line of a safetensors header; `start` and `stop` are bytes of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class SafeTensor:
    """One tensor of a safetensors file. `offset` counts from the beginning of the file."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int

    @property
    def origin(self) -> str:
        return self.name

    def rows(self, out: Tensor, start: int) -> None:
        if out.dtype == self.dtype and out.is_contiguous():
            self._read(out, start)
            return
        step = rows_at_once(self, self.dtype)
        stop = start + (len(out) if out.dim() else 1)
        for low in range(start, stop, step):
            target = section(out, low - start, min(low + step, stop) - start)
            target.copy_(self._read(torch.empty(target.shape, dtype=self.dtype), low))

    def _read(self, out: Tensor, start: int) -> Tensor:
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        view = memoryview(out.reshape(-1).view(torch.uint8).numpy().data)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset + start * row_bytes)
            done = 0
            while done < len(view):
                count = file.readinto(view[done : done + (1 << 30)])
                if not count:
                    raise WeightsError(f"{self.path} ended while {self.name} was read: it changed on disk")
                done += count
        return out


@dataclass(slots=True)
class TorchFile:
    """A torch checkpoint, mapped from disk. Files of the old, unzipped kind are read whole."""

    path: Path
    tensors: dict[str, Tensor] = field(default_factory=dict)
    is_mapped: bool = True
    bytes_read: int = 0

    def open(self) -> Mapping[str, Tensor]:
        if not self.tensors or (self.is_mapped and self.bytes_read > REMAP_BYTES):
            self.tensors.clear()
            self.bytes_read = 0
            self.tensors.update(self._load())
        return self.tensors

    def _load(self) -> Mapping[str, Tensor]:
        with self.path.open("rb") as file:
            self.is_mapped = file.read(4) == b"PK\x03\x04"
        try:
            loaded = torch.load(self.path, map_location="cpu", weights_only=True, mmap=self.is_mapped)
        except pickle.UnpicklingError as error:
            raise WeightsError(
                f"{self.path} holds more than tensors, or is no torch file, and was not opened because "
                f"pickles can run code ({_reason(error)}); convert it to safetensors where it was made"
            ) from error
        except OSError:
            raise
        except Exception as error:  # a damaged pickle is another program, which may fail in any way
            size = self.path.stat().st_size
            raise WeightsError(
                f"{self.path} ({size} bytes) is truncated or not a torch file "
                f"({_reason(error)}); fetch it again"
            ) from error
        return _state_dict(loaded, self.path)


@dataclass(frozen=True, slots=True)
class TorchTensor:
    """One tensor of a torch file."""

    file: TorchFile
    origin: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def rows(self, out: Tensor, start: int) -> None:
        step = rows_at_once(self, self.dtype)
        count = len(out) if out.dim() else 1
        for low in range(0, count, step):
            high = min(low + step, count)
            source = section(self.file.open()[self.origin], start + low, start + high)
            section(out, low, high).copy_(source)
            self.file.bytes_read += source.numel() * self.dtype.itemsize


def read_file(path: Path) -> Mapping[str, Lazy]:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"{path} is not a weight file: expected one of {', '.join(SUFFIXES)}")
    file = TorchFile(path)
    return {
        key: TorchTensor(file, key, tuple(tensor.shape), tensor.dtype) for key, tensor in file.open().items()
    }


def _read_safetensors(path: Path) -> Mapping[str, Lazy]:
    """Names, shapes and places. The library checks the header: sizes, overlaps, limits."""
    header = _header(path)
    size = path.stat().st_size
    needed = max((entry.stop for entry in header.values()), default=0)
    if needed > size:
        raise WeightsError(f"{path} is truncated: {size} bytes of {needed}; fetch it again")
    try:
        with safe_open(path, "pt"):
            pass
    except SafetensorError as error:
        raise WeightsError(f"{path} ({size} bytes) is not a valid safetensors file: {error}") from error
    for key, entry in header.items():
        if entry.dtype not in DTYPES:
            raise WeightsError(f"{key} in {path} is stored as {entry.dtype}, which is not supported")
    return {
        key: SafeTensor(path, key, entry.shape, DTYPES[entry.dtype], entry.start)
        for key, entry in header.items()
    }


def _header(path: Path) -> Mapping[str, Entry]:
    """The header's entries; a file too short for its own header is named with both sizes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not length <= min(size - 8, MAX_HEADER_BYTES):
            raise WeightsError(
                f"{path} is truncated or not a safetensors file: {size} bytes, but its header alone "
                f"is said to take {length}; fetch it again"
            )
        text = file.read(length)
    try:
        entries = {key: entry for key, entry in json.loads(text).items() if key != "__metadata__"}
        return {key: _entry(entry, 8 + length) for key, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{path} ({size} bytes) has a corrupt safetensors header; fetch it again"
        ) from error


def _entry(entry: dict[str, list[int]], base: int) -> Entry:
    start, stop = entry["data_offsets"]
    return Entry(str(entry["dtype"]), tuple(entry["shape"]), base + start, base + stop)


def _state_dict(loaded: object, path: Path) -> Mapping[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}, not tensors by name")
    strange = [
        key for key, value in loaded.items() if not (isinstance(key, str) and isinstance(value, Tensor))
    ]
    if strange or not loaded:
        raise WeightsError(f"{path} holds no tensors by name: {strange[:3] or 'it is empty'}")
    return loaded


def _reason(error: Exception) -> str:
    """The line of torch's message that says what was found, without its advice to switch safety off."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("Trying to load", "Unsupported"))]
    return (telling or lines or [type(error).__name__])[0][:200]
