"""What `import internvl` offers, and what it costs."""

from __future__ import annotations

import subprocess
import sys
from operator import attrgetter

import pytest

import internvl
from tests.architecture.source import SRC

HEAVY = ("torch", "torchvision", "transformers", "scipy", "av", "onnx", "gguf", "pypdfium2", "tokenizers")


def loaded_after(code: str) -> set[str]:
    """Heavy packages that a fresh interpreter holds after running `code`."""
    probe = f"{code}\nimport sys\nsys.stderr.write(' '.join(sys.modules))"
    finished = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    return set(finished.stderr.split()) & set(HEAVY)


def test_public_names_resolve() -> None:
    names = list(internvl.__all__)
    assert len(names) == len(set(names))
    assert [name for name in names if not hasattr(internvl, name)] == []


def test_public_names_are_listed() -> None:
    assert set(internvl.__all__) <= set(dir(internvl))


def test_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        attrgetter("no_such_name")(internvl)


@pytest.mark.parametrize("module", ["internvl", "internvl.config", "internvl.errors", "internvl.zoo"])
def test_import_is_light(module: str) -> None:
    assert loaded_after(f"import {module}") == set()


def test_help_is_light() -> None:
    code = """
import sys
from internvl.cli.main import main
sys.argv = ["internvl", "--help"]
try:
    status = main()
except SystemExit as stop:
    status = stop.code
assert not status, status
"""
    assert loaded_after(code) == set()


def test_the_package_is_typed() -> None:
    assert (SRC / "internvl" / "py.typed").is_file()
