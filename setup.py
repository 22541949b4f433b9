"""Compiles the kernels of `internvl.ops`, once for each kind of processor they have instructions for.

Without a compiler the package installs all the same and uses PyTorch's arithmetic (`internvl.ops.native`).
All other settings are in pyproject.toml. The libraries are no Python modules: they have C functions and know
no Python.
"""

import platform
from pathlib import Path

from setuptools import Extension, setup

KERNELS = Path("src/internvl/ops/csrc")
# Without debug information, which would be most of a library, and without notes on how vectors go from one
# library to another: none do.
COMMON = ["-std=c++17", "-O3", "-g0", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp", "-Wno-psabi"]
KINDS = {"portable": []}
if platform.machine().lower() in {"x86_64", "amd64"}:
    KINDS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    # GCC 12 warns about its own headers for AVX-512.
    quiet = ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
    KINDS["vnni"] = [*KINDS["avx2"], "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni", *quiet]

setup(
    ext_modules=[
        Extension(
            f"internvl.ops._kernels_{kind}",
            sources=sorted(str(path) for path in KERNELS.glob("*.cpp")),
            depends=sorted(str(path) for path in KERNELS.glob("*.h")),
            extra_compile_args=[*COMMON, *flags],
            extra_link_args=["-fopenmp"],
            language="c++",
            optional=True,
        )
        for kind, flags in KINDS.items()
    ]
)
