"""Which files of a repository make a checkpoint.

Knows names only: no network, no disk.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence

from internvl.errors import HubError

SIDE_FILES = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
"""Configurations, indices of shards and everything tokenizers read."""
SAFETENSORS = ("*.safetensors",)
PICKLED = ("pytorch_model*.bin", "mm_projector.bin", "adapter_model.bin")

_FILE_NAME = re.compile(r"[\w+@=,()\[\] -][\w.+@=,()\[\] -]{0,254}")


def choose_files(files: Iterable[str], allow_patterns: Sequence[str] | None = None) -> tuple[str, ...]:
    """Of a repository's files those that make a checkpoint, or those that match a pattern; never code.

    Weights are taken as safetensors, otherwise as .bin, never both. Raises HubError when the repository
    holds no checkpoint, or nothing that matches.
    """
    safe = sorted(file for file in files if _is_safe(file))
    if allow_patterns is not None:
        chosen = matching(safe, allow_patterns)
        if not chosen:
            raise HubError(f"none of {len(safe)} files matches {', '.join(allow_patterns)}")
        return chosen
    top = [file for file in safe if "/" not in file]
    weights = matching(top, SAFETENSORS) or matching(top, PICKLED)
    if "config.json" not in top or not weights:
        found = ", ".join(top[:10]) or "nothing"
        raise HubError(f"no checkpoint: config.json and *.safetensors or *.bin are needed, found {found}")
    side = matching(top, SIDE_FILES)
    other_index = "*.bin.index.json" if weights[0].endswith(".safetensors") else "*.safetensors.index.json"
    return tuple(sorted({*weights, *side} - {*matching(side, (other_index,))}))


def matching(files: Iterable[str], patterns: Iterable[str]) -> tuple[str, ...]:
    """The names that match one of the patterns (`*`, `?`, `[...]`; `*` also matches "/")."""
    return tuple(file for file in files if any(fnmatch.fnmatchcase(file, pattern) for pattern in patterns))


def _is_safe(file: str) -> bool:
    """No code, no hidden files, and nothing that would leave its directory."""
    return not file.endswith(".py") and all(_FILE_NAME.fullmatch(part) for part in file.split("/"))
