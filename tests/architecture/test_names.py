"""Names say what a thing is: no catch-all modules, no branching on model names, no hidden state."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.architecture.source import Module, modules

CATCH_ALL = re.compile(r"^_*(utils?|common|helpers?|misc|base|core|tools?|stuff)$")

MODEL_NAME = re.compile(
    r"(internvl|internvit|intern_vit|internlm|qwen|llama|vicuna|phi-?3|hermes|smollm|mistral|qllama)"
    r"|^(nano|yi|yi-\w+)$",
    re.IGNORECASE,
)
# The package's own name, as in `internvl.errors` or the variable INTERNVL_CACHE, is no model's name.
OWN_NAME = re.compile(r"^(internvl(\.[a-z_.]*)?|INTERNVL_[A-Z_]+)$")
# The zoo is made of names, and checkpoints/ reads files in which others wrote them.
MAY_COMPARE_NAMES = frozenset({"zoo", "checkpoints"})

MUTABLE_CALLS = frozenset(
    {"list", "dict", "set", "bytearray", "defaultdict", "OrderedDict", "Counter", "deque"}
)
READ_ONLY = re.compile(r"^(\w+\.)*(Mapping|Sequence|Collection|Set|AbstractSet|Iterable|tuple|frozenset)\b")
MUTATORS = frozenset(
    {
        "append",
        "extend",
        "insert",
        "add",
        "update",
        "setdefault",
        "pop",
        "popitem",
        "remove",
        "discard",
        "clear",
    }
)


@pytest.mark.parametrize("module", modules(), ids=str)
def test_no_catch_all_modules(module: Module) -> None:
    assert not [part for part in module.name.split(".") if CATCH_ALL.match(part)]


@pytest.mark.parametrize("module", modules(), ids=str)
def test_every_module_opens_with_a_docstring(module: Module) -> None:
    assert ast.get_docstring(module.tree), f"{module}: say what it does, and what it does not know"


@pytest.mark.parametrize("module", modules(), ids=str)
def test_no_print_and_no_global(module: Module) -> None:
    found = [
        node.lineno
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Global) or (isinstance(node, ast.Call) and is_print(node.func))
    ]
    assert not found, f"{module}: print or global in lines {found}"


@pytest.mark.parametrize("module", modules(), ids=str)
def test_model_names_are_not_compared(module: Module) -> None:
    if module.package not in MAY_COMPARE_NAMES:
        found = [(line, text) for line, text in compared_strings(module.tree) if is_model_name(text)]
        assert not found, f"{module}: make it a field of the configuration or a row of the zoo: {found}"


@pytest.mark.parametrize("module", modules(), ids=str)
def test_no_mutable_module_state(module: Module) -> None:
    found = list(mutable_state(module.tree))
    assert not found, f"{module}: module-level state that can change: {found}"


def is_model_name(text: str) -> bool:
    return bool(MODEL_NAME.search(text)) and not OWN_NAME.match(text)


def is_print(function: ast.expr) -> bool:
    return isinstance(function, ast.Name) and function.id in {"print", "pprint"}


def compared_strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """String constants on either side of a comparison, in a `case`, or asked of startswith and its kin."""
    for node in ast.walk(tree):
        operands: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            operands = [node.value]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            operands = [*node.args] if node.func.attr in {"startswith", "endswith", "match", "search"} else []
        for operand in operands:
            for leaf in ast.walk(operand):
                if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str):
                    yield leaf.lineno, leaf.value


def mutable_state(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Module-level containers that are not constants, and constants that some code changes."""
    tables = set()
    for node in tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name):
                tables.add(target.id)
                if is_mutable(node.value) and not is_constant(target.id, node):
                    yield node.lineno, target.id
    yield from mutations(tree, tables)


def is_mutable(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        name = value.func.attr if isinstance(value.func, ast.Attribute) else getattr(value.func, "id", "")
        return name in MUTABLE_CALLS
    return isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp)


def is_constant(name: str, node: ast.Assign | ast.AnnAssign) -> bool:
    """`__all__`, or an UPPERCASE table annotated with a type that cannot be changed through it."""
    if name == "__all__":
        return True
    annotation = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else ""
    return name.isupper() and bool(READ_ONLY.match(re.sub(r"^(\w+\.)*Final\[(.*)\]$", r"\2", annotation)))


def mutations(tree: ast.Module, tables: set[str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        changed: ast.AST | None = None
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            changed = node.value
        elif (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS
        ):
            changed = node.func.value
        if isinstance(changed, ast.Name) and changed.id in tables and changed.id.isupper():
            yield changed.lineno, f"{changed.id} is changed"


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("cache = {}", ["cache"]),
        ("_seen: set[str] = set()", ["_seen"]),
        ("TABLE = {'a': 1}", ["TABLE"]),
        ("TABLE: dict[str, int] = {'a': 1}", ["TABLE"]),
        ("TABLE: Mapping[str, int] = {'a': 1}", []),
        ("TABLE: Final[Mapping[str, int]] = {'a': 1}", []),
        ("ROWS = (1, 2)", []),
        ("__all__ = ['load']", []),
        ("ROWS: Sequence[int] = [1]\ndef f(): ROWS.append(2)", ["ROWS is changed"]),
        ("TABLE: Mapping[str, int] = {}\ndef f(): TABLE['a'] = 2", ["TABLE is changed"]),
    ],
)
def test_mutable_state_is_found(code: str, names: list[str]) -> None:
    assert [name for _, name in mutable_state(ast.parse(code))] == names


@pytest.mark.parametrize(
    ("code", "is_found"),
    [
        ("if name == 'Qwen2ForCausalLM': pass", True),
        ("if kind in {'phi3', 'other'}: pass", True),
        ("if name.lower().startswith('internvl2'): pass", True),
        ("match name:\n case 'nano': pass", True),
        ("TEMPLATES = {'internvl2_5': 1}", False),
        ("if norm == 'rms': pass", False),
        ("if 'INTERNVL_DEBUG' in environ: pass", False),
    ],
)
def test_compared_model_names_are_found(code: str, is_found: bool) -> None:
    assert any(is_model_name(text) for _, text in compared_strings(ast.parse(code))) == is_found
