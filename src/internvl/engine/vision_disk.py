"""Vision tokens on disk: pictures once seen stay known over a restart.

One safetensors file a picture, named by a digest of its key and of the fingerprint of what made its tokens
(`towers.fingerprint`). Files are written beside and renamed, so there are only whole ones; what cannot be
read counts as absent. Least recently used files go first. Several processes, of several users too, may share
a directory; one that cannot be written is still read. Knows keys and tensors; no pictures, no models. Shape
letters: S vision tokens of one picture, D text width.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from internvl.errors import EngineError, InputError

SUFFIX = ".safetensors"
NAME = "vision_tokens"
CLEARED_SHARE = 0.1
"""Of the limit, let go together when it is reached, so that the directory is not listed for every picture."""


class VisionDisk:
    """A directory of at most `max_bytes`; tensors come back on `device`.

    Raises EngineError if the directory cannot be made.
    """

    def __init__(
        self, directory: str | Path, fingerprint: bytes, max_bytes: int, device: torch.device | None = None
    ) -> None:
        if max_bytes < 1:
            raise InputError(f"a vision cache on disk needs at least 1 byte, got {max_bytes}")
        self.directory, self.fingerprint, self.max_bytes = Path(directory), fingerprint, max_bytes
        self.device = str(device or "cpu")
        self.num_failed = 0
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(f"no vision cache in {directory}: {error}") from error
        self.num_bytes = sum(size for _, size, _ in self._files())

    def find(self, key: bytes) -> Tensor | None:
        """Vision tokens (S, D) of a picture. Broken files are removed, where that may be done."""
        path = self._path(key)
        try:
            tokens_SD = load_file(path, device=self.device)[NAME]
        except FileNotFoundError:
            return None
        except OSError:  # it may be whole all the same
            self.num_failed += 1
            return None
        except (SafetensorError, KeyError):
            self.num_failed += 1
            with suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        with suppress(OSError):  # gone meanwhile, or not ours to change
            os.utime(path)
        return tokens_SD

    def keep(self, key: bytes, tokens_SD: Tensor) -> None:
        """Writes the vision tokens of a picture. A full or broken disk costs the file, nothing else."""
        path = self._path(key)
        if tokens_SD.nbytes > self.max_bytes:
            return
        temporary = path.with_suffix(f".{secrets.token_hex(8)}.part")
        try:
            if path.exists():
                return
            # Not by safetensors' save_file, whose files nobody else may read.
            size = temporary.write_bytes(save({NAME: tokens_SD.detach().cpu().contiguous()}))
            temporary.replace(path)
        except (OSError, SafetensorError):
            self.num_failed += 1
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            return
        self.num_bytes += size
        if self.num_bytes > self.max_bytes:
            self._shrink()

    def _shrink(self) -> None:
        """Removes the files that were not used for longest."""
        files = sorted(self._files())
        self.num_bytes = sum(size for _, size, _ in files)
        for _, size, path in files:
            if self.num_bytes <= self.max_bytes * (1 - CLEARED_SHARE):
                return
            try:
                path.unlink(missing_ok=True)
            except OSError:
                self.num_failed += 1
                continue
            self.num_bytes -= size

    def _files(self) -> list[tuple[int, int, Path]]:
        """Time of last use, size and path of every file; others may remove some meanwhile."""
        found = []
        for path in self.directory.glob(f"*{SUFFIX}"):
            with suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        return found

    def _path(self, key: bytes) -> Path:
        digest = blake2b(self.fingerprint + key, digest_size=32).hexdigest()
        return self.directory / f"{digest}{SUFFIX}"
