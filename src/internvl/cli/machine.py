"""What this machine and this installation are: for `internvl info` and for every measurement.

Reads the system only; knows no models.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

from internvl.errors import DeviceError
from internvl.ops.native import kind_in_use

CORE = (
    "torch",
    "numpy",
    "pillow",
    "safetensors",
    "tokenizers",
    "sentencepiece",
    "huggingface_hub",
    "tyro",
    "rich",
)
REQUIREMENT = re.compile(r"""(?P<name>[\w.-]+)[^;]*;.*extra == ["'](?P<extra>\w+)["']""")
DEVELOPMENT = frozenset({"test", "check", "all"})


def versions() -> dict[str, str]:
    """This package, Python, and what the package needs."""
    own = {"internvl": importlib.metadata.version("internvl"), "python": platform.python_version()}
    return own | {name: importlib.metadata.version(name) for name in CORE}


def extras() -> dict[str, bool]:
    """Which extras of this package are complete here, by what its metadata says they need."""
    found: dict[str, bool] = {}
    for requirement in importlib.metadata.requires("internvl") or ():
        match = REQUIREMENT.match(requirement)
        if match and match["extra"] not in DEVELOPMENT:
            found[match["extra"]] = found.get(match["extra"], True) and _is_installed(match["name"])
    return found


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def describe_processor() -> dict[str, Any]:
    """The processor: what a measurement depends on most."""
    return {
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "kernels": kind_in_use() or "none (PyTorch)",
        "threads": torch.get_num_threads(),
        "memory_bytes": total_memory(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def torch_build() -> dict[str, Any]:
    """How torch was built, as far as it decides about speed and devices."""
    settings = torch.__config__.show()
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "blas": _setting(settings, "BLAS_INFO"),
        "mkl": torch.backends.mkl.is_available(),
        "onednn": torch.backends.mkldnn.is_available(),
        "openmp": torch.backends.openmp.is_available(),
    }


def devices() -> list[str]:
    """Names that `--device` takes here, with what they are."""
    found = ["cpu"]
    if torch.cuda.is_available():
        found += [
            f"cuda:{index} ({torch.cuda.get_device_name(index)})"
            for index in range(torch.cuda.device_count())
        ]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def total_memory() -> int:
    """Bytes of memory; 0 where the system does not say."""
    names = getattr(os, "sysconf_names", {})
    if not {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(names):
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_memory(device: str) -> int:
    """Bytes of the device's memory that nothing uses. Raises DeviceError where the system does not say."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    listing = Path("/proc/meminfo")
    lines = listing.read_text(encoding="ascii").splitlines() if listing.is_file() else []
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.removesuffix("kB")) * 1024
    raise DeviceError("this system does not say how much memory is free: name a number of bytes")


def _processor_name() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        found = re.search(r"^model name\s*: (.+)$", listing.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _setting(settings: str, name: str) -> str:
    found = re.search(rf"{name}=(\w+)", settings)
    return found[1] if found else ""
