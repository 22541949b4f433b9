"""What is shipped of nano's training: the tower's tuned blocks, the projector, the language model's adapters.

    python -m internvl.recipes.nano_assets runs/tower-2/model runs/nano-4/adapter OUT

The files of OUT belong in src/internvl/assets/nano, their hash, which is printed, in `checkpoints.nano`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from internvl.checkpoints.adapters import load_adapters
from internvl.checkpoints.deltas import write_deltas
from internvl.checkpoints.load import load_model
from internvl.checkpoints.nano import DTYPE, digest_of, read_files
from internvl.errors import CheckpointError
from internvl.recipes.nano import TUNED_BLOCKS

MAX_BYTES = 40_000_000


def write(base: Path, adapter: Path, out: Path) -> str:
    """Writes to OUT what is not public of `base` with its `adapter`; returns the hash of the files.

    Raises CheckpointError when something cannot be read or is too large to be shipped.
    """
    model = load_model(base)
    load_adapters(model, adapter)
    size = write_deltas(model, (TUNED_BLOCKS, r"projector\..*"), out, DTYPE)
    if size > MAX_BYTES:
        raise CheckpointError(f"{out} holds {size:,} bytes; at most {MAX_BYTES:,} are shipped")
    return digest_of(read_files(out))


if __name__ == "__main__":
    import tyro

    sys.stdout.write(tyro.cli(write, config=(tyro.conf.Positional,)) + "\n")
