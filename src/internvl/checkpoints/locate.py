"""Where a checkpoint lies: a path, what is put together on this machine, the cache, or the hub.

What is on this disk is found without importing the hub's library.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from internvl import zoo
from internvl.checkpoints.nano import assemble

if TYPE_CHECKING:
    from internvl.checkpoints.hub import Progress


def resolve(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> Path:
    """Where a checkpoint lies, a directory or a weight file: an existing path as it is; else from the cache;
    else pulled, if in the zoo.

    The cache is asked first, so that a model that was pulled once loads without the network.

    Raises:
        UnknownNameError: no such path, and no such row or cached repository.
        HubError: as `hub.pull`; or a row that this version cannot load.
    """
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    name = str(name_or_path)
    card = zoo.find_or_none(name)
    if card is not None and card.is_assembled and revision is None:
        return assemble(card.name, cache_dir, offline=offline)
    from internvl.checkpoints import hub  # its library takes 0.2 s to import

    return hub.find(name, revision=revision, cache_dir=cache_dir, offline=offline, progress=progress)
