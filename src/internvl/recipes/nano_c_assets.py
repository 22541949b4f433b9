"""What is shipped of nano-c's training: adapters, pools, queries; its tower is in assets/nano-c-tower.

    python -m internvl.recipes.nano_c_assets runs/nano-c-1/deltas runs/nano-c-2/model OUT

The files of OUT belong in src/internvl/assets/nano-c, their hash, which is printed, in `checkpoints.nano`.
Those of the tower are what `nano_assets` writes of the tower of runs/nano-1.5/model.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from internvl.checkpoints.deltas import read_deltas, store_deltas
from internvl.checkpoints.load import load_model
from internvl.checkpoints.nano import DTYPE, digest_of, read_files
from internvl.errors import CheckpointError
from internvl.recipes.nano_assets import MAX_BYTES
from internvl.recipes.nano_c import QUERIES


def write(first: Path, second: Path, out: Path) -> str:
    """Writes to OUT the deltas of the first stage with what the second one trained; returns the hash.

    Raises CheckpointError when something cannot be read or is too large to be shipped.
    """
    state = load_model(second).state_dict()
    learnt = {name: value for name, value in state.items() if re.fullmatch(QUERIES, name)}
    size = store_deltas(read_deltas(read_files(first)) | learnt, out, DTYPE)
    if size > MAX_BYTES:
        raise CheckpointError(f"{out} holds {size:,} bytes; at most {MAX_BYTES:,} are shipped")
    return digest_of(read_files(out))


if __name__ == "__main__":
    import tyro

    sys.stdout.write(tyro.cli(write, config=(tyro.conf.Positional,)) + "\n")
