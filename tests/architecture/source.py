"""The package as the architecture tests see it: modules, imports and functions, read from the syntax tree.

Nothing is imported, so a module that cannot be imported yet is still measured.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src"


@dataclass(frozen=True)
class Module:
    """One source file. `name` is dotted; `package` is its room ("" for `internvl/__init__.py`)."""

    path: Path
    name: str
    tree: ast.Module
    num_lines: int

    @property
    def package(self) -> str:
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 else ""

    def __str__(self) -> str:
        return str(self.path.relative_to(ROOT))


@dataclass(frozen=True)
class Import:
    """`target` is a module when one of that name exists, else what was written.

    An inner import is inside a function, a typing import behind TYPE_CHECKING.
    """

    target: str
    line: int
    is_inner: bool
    is_typing: bool


@dataclass(frozen=True)
class Function:
    name: str
    line: int
    num_lines: int


@cache
def modules() -> tuple[Module, ...]:
    return tuple(_read(path) for path in sorted((SRC / "internvl").rglob("*.py")))


def _read(path: Path) -> Module:
    parts = path.relative_to(SRC).with_suffix("").parts
    name = ".".join(part for part in parts if part != "__init__")
    text = path.read_text(encoding="utf-8")
    return Module(path, name, ast.parse(text, filename=str(path)), len(text.splitlines()))


@cache
def imports(module: Module) -> tuple[Import, ...]:
    """Every import of the file, also those hidden in functions and behind TYPE_CHECKING."""
    inner = _ids_below(node for node in ast.walk(module.tree) if _is_function(node))
    typing = _ids_below(node for node in ast.walk(module.tree) if _is_typing(node))
    found: list[Import] = []
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        targets = [prefix + alias.name for alias in node.names]
        found += [
            Import(_module_of(target), node.lineno, id(node) in inner, id(node) in typing)
            for target in targets
        ]
    return tuple(found)


def _ids_below(tops: Iterable[ast.AST]) -> set[int]:
    return {id(node) for top in tops for node in ast.walk(top)}


def _is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def _is_typing(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _module_of(target: str) -> str:
    """`internvl.config.VisionConfig` names the module `internvl.config`; others keep what was written."""
    known = {module.name for module in modules()}
    parent = target.rpartition(".")[0]
    return target if target in known or parent not in known else parent


@cache
def functions(module: Module) -> tuple[Function, ...]:
    """Functions and methods with their physical lines, signature and docstring included, decorators not."""
    return tuple(
        Function(node.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
