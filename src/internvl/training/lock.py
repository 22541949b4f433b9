"""One run in a folder at a time: two would remove each other's half-written checkpoints and mix their logs.

The operating system lets go of the lock when the process ends, however it ends. Knows no recipe and no files.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from internvl.errors import TrainingError
from internvl.training.world import World


@contextmanager
def held(folder: Path, world: World) -> Iterator[None]:
    """Keeps other runs out of `folder`, which is made, within the block.

    File systems without locks (some that are shared over a network) let everybody in. Raises TrainingError,
    on all processes, while another run holds it.
    """
    is_free, descriptor = True, None
    if world.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        with suppress(OSError):
            is_free = _is_locked(descriptor)
    try:
        if world.any(not is_free):
            raise TrainingError(
                f"another run is writing to {folder}: wait for it or stop it, or choose another folder"
            )
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    """Whether the lock could be had at once."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
