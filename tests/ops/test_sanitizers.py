"""The kernels, built with the address and undefined-behaviour sanitizers, under their own tests.

A read or write outside a tensor, a shift or an overflow that C++ leaves undefined ends the run. Gradients of
PyTorch's own and the libraries that this machine cannot run stay out.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined"
TESTS = (
    "tests/ops/test_packed.py",
    "tests/ops/test_tile_attention.py",
    "tests/ops/test_causal_attention.py",
    "tests/ops/test_tower_block.py",
    "tests/ops/test_gated_mlp.py",
    "tests/ops/test_rms_norm.py",
    "tests/ops/test_rotate.py",
    "tests/models/test_fused_step.py",
    "tests/engine/test_paged_cache.py",
)


pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def kernels_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The libraries, built as setup.py builds them."""
    folder = tmp_path_factory.mktemp("kernels")
    sanitizer("asan")
    done = python(
        "setup.py", "-q", "build_ext", f"--build-lib={folder}", f"--build-temp={folder}", CXXFLAGS=FLAGS
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return folder / "internvl" / "ops"


def test_nothing_is_touched_that_is_not_ours(kernels_folder: Path) -> None:
    done = watched("-m", "tests.ops.sanitized_worker", str(kernels_folder), *TESTS)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


def test_the_sanitizers_watch(kernels_folder: Path) -> None:
    """Without this an unsanitized build would pass for a clean one."""
    program = f"""
import ctypes, torch
from internvl.ops.native import address, count
native = ctypes.CDLL(r"{kernels_folder / f"_kernels_portable{EXTENSION_SUFFIXES[0]}"}")
rows, out = torch.randn(1, 17, 48), torch.empty(1, 17, 16)
native.tile_attention(address(rows), *map(count, (1, 18, 1, 16, 0)), address(out))  # one patch too many
"""
    done = watched("-c", program)
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr


def watched(*arguments: str) -> subprocess.CompletedProcess[str]:
    return python(
        *arguments,
        LD_PRELOAD=" ".join(sanitizer(name) for name in ("asan", "ubsan")),
        ASAN_OPTIONS="detect_leaks=0",  # Python keeps what it has until the end
        UBSAN_OPTIONS="print_stacktrace=1",
    )


def sanitizer(name: str) -> str:
    """Where the compiler keeps a sanitizer's library; skips where it has none."""
    try:
        found = subprocess.run(
            ["c++", f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except FileNotFoundError:
        pytest.skip("there is no C++ compiler")
    if not Path(found).is_absolute():
        pytest.skip(f"this compiler has no lib{name}.so")
    return found


def python(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Python in the project's root."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")} | settings,
        capture_output=True,
        text=True,
    )
