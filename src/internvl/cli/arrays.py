"""Named arrays and the names of their rows in one file, which appears whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

from internvl.errors import InputError


def write_arrays(path: Path, arrays: Mapping[str, Tensor], names: Sequence[str]) -> None:
    """Write .npz (rows named by the array `names`) or .safetensors (by JSON in the metadata).

    Raises InputError for another ending, OSError where the disk refuses.
    """
    if path.suffix not in (".npz", ".safetensors"):
        raise InputError(f"arrays are written as .npz or .safetensors, not {path.name}")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    unfinished = Path(name)
    try:
        if path.suffix == ".npz":
            columns: dict[str, Any] = {key: value.numpy() for key, value in arrays.items()}
            np.savez(unfinished, names=np.array(names), **columns)
        else:
            save_file(dict(arrays), unfinished, metadata={"names": json.dumps(list(names))})
        unfinished.chmod(0o666 & ~_umask())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _umask() -> int:
    """The process's mask; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
