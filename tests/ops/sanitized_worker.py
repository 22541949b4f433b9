"""Runs tests over kernels that lie in another folder: `python -m tests.ops.sanitized_worker FOLDER TEST...`.

What test_sanitizers.py starts, with the sanitizers' library loaded before everything else.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from internvl.ops import native


def main(folder: Path, tests: list[str]) -> int:
    @cache
    def load_library(kind: str) -> ctypes.CDLL | None:
        return ctypes.CDLL(str(folder / f"_kernels_{kind}{EXTENSION_SUFFIXES[0]}"))

    native.load_library = load_library
    return int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests]))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
