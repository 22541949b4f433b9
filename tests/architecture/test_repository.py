"""What is committed works on any machine and is finished."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest

from tests.architecture.source import ROOT

THIS_FILE = Path(__file__).resolve()
CONFTEST = ROOT / "tests" / "conftest.py"

MACHINE_PATH = re.compile(r"(?<![\w.\-/])(/w[o]rk/|/root/|/home/\w+/|/opt/\w+/|/Users/\w+/)")
NEIGHBOUR = re.compile(r"\.\./shared")
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX)\b")


@cache
def texts() -> dict[Path, str]:
    """Everything that is, or is about to be, committed and is text."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[Path, str] = {}
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and path != THIS_FILE and path.stat().st_size < 1_000_000:
            data = path.read_bytes()
            if b"\0" not in data:
                found[path] = data.decode("utf-8", errors="replace")
    return found


def lines_with(pattern: re.Pattern[str], *, but: frozenset[Path] = frozenset()) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path, text in texts().items()
        if path not in but
        for number, line in enumerate(text.splitlines(), start=1)
        if pattern.search(line)
    ]


def test_no_machine_paths() -> None:
    assert lines_with(MACHINE_PATH) == []


def test_nothing_outside_the_repository_is_named() -> None:
    assert lines_with(NEIGHBOUR, but=frozenset({CONFTEST})) == []


def test_nothing_is_left_unfinished() -> None:
    assert lines_with(UNFINISHED) == []


def test_every_dependency_is_pinned_and_no_index_named() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(r for rs in project["optional-dependencies"].values() for r in rs)]
    lock = [
        line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")
    ]
    pinned = {plain(line.split("==")[0]) for line in lock}
    names = {plain(re.split(r"[>=<\[]", requirement)[0]) for requirement in wanted}
    assert all(re.fullmatch(r"[\w.\-]+==[\w.]+", line) for line in lock)
    assert names - pinned == {"internvl"}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("test_*.py")), ids=lambda path: path.name)
def test_every_test_asserts(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    empty = [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not any(can_fail(child) for child in ast.walk(node))
    ]
    assert not empty, f"{path.relative_to(ROOT)}: nothing is asserted in {', '.join(empty)}"


def can_fail(node: ast.AST) -> bool:
    """An assert, pytest.raises and its kin, or a call of something that says it asserts."""
    if isinstance(node, ast.Assert):
        return True
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name.startswith(("assert", "check", "_assert", "_check")) or name in {"raises", "warns", "fail"}


@pytest.mark.parametrize(
    ("line", "is_found"),
    [
        ("data = '/Users/ann/data'", True),
        ("see /home/ann/notes", True),
        ("PATH=/root/.venv", True),
        ("https://example.org/home/ann/main", False),
        ("networks/home/page", False),
    ],
)
def test_machine_paths_are_found(line: str, is_found: bool) -> None:
    assert bool(MACHINE_PATH.search(line)) == is_found


@pytest.mark.parametrize(
    ("code", "is_found"),
    [("assert x", True), ("raises(E)", True), ("torch.testing.assert_close(a, b)", True), ("run(x)", False)],
)
def test_assertions_are_found(code: str, is_found: bool) -> None:
    assert any(can_fail(node) for node in ast.walk(ast.parse(code))) == is_found


@pytest.mark.parametrize("name", ["run", "test", "check", "bench", "environment"])
def test_scripts_are_valid_shell(name: str) -> None:
    finished = subprocess.run(["bash", "-n", str(ROOT / "scripts" / name)], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_bench_without_a_name_is_wrong_use() -> None:
    finished = subprocess.run([str(ROOT / "scripts" / "bench")], capture_output=True, text=True)
    assert finished.returncode == 2
    assert "usage: scripts/bench NAME" in finished.stderr
