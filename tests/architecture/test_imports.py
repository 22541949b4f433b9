"""Imports point one way: a table of who may use whom, and no cycle between modules."""

from __future__ import annotations

import sys
import tomllib

import pytest

from tests.architecture.source import ROOT, Module, imports, modules

ANYTHING = frozenset({"*"})

# Lower may never import higher; rooms on one level may not import one another unless listed.
ALLOWED = {
    "errors": frozenset[str](),
    "config": frozenset({"errors"}),
    "chat_templates": frozenset[str](),
    "zoo": frozenset({"config", "errors"}),
    "ops": frozenset({"errors"}),
    "models": frozenset({"ops", "config", "errors"}),
    "processing": frozenset({"chat_templates", "config", "errors"}),
    "adapt": frozenset({"models", "ops", "config", "errors"}),
    "checkpoints": frozenset({"models", "zoo", "chat_templates", "config", "adapt", "errors"}),
    "generation": frozenset({"models", "config", "errors"}),
    "data": frozenset({"processing", "config", "errors"}),
    "engine": frozenset({"models", "ops", "generation", "config", "errors"}),
    "training": frozenset(
        {
            "models",
            "ops",
            "adapt",
            "checkpoints",
            "data",
            "processing",
            "generation",
            "evaluation",
            "zoo",
            "config",
            "errors",
        }
    ),
    "evaluation": frozenset({"processing", "config", "errors"}),
    "api": frozenset(
        {"checkpoints", "processing", "generation", "engine", "models", "zoo", "config", "errors"}
    ),
    "compat": frozenset({"api", "zoo", "checkpoints", "processing", "generation", "config", "errors"}),
    "recipes": frozenset(
        {
            "training",
            "data",
            "adapt",
            "evaluation",
            "checkpoints",
            "processing",
            "models",
            "zoo",
            "config",
            "errors",
        }
    ),
    "search": frozenset(
        {"api", "checkpoints", "models", "data", "processing", "evaluation", "config", "errors"}
    ),
    # Requests and their pieces are the engine's; settings of answers, tokens and log-probabilities are
    # generation's, and the engine hands them on as they are.
    "serving": frozenset({"api", "engine", "generation", "processing", "config", "errors"}),
    "integrations": frozenset(
        {"api", "search", "checkpoints", "models", "ops", "processing", "config", "errors"}
    ),
    "cli": ANYTHING,
    "__main__": frozenset({"cli"}),
    "": ANYTHING,
}

# Rooms that stay free of third parties, or nearly so; the others may use whatever pyproject.toml names.
THIRD_PARTY = {
    "errors": frozenset[str](),
    "config": frozenset[str](),
    "chat_templates": frozenset[str](),
    "zoo": frozenset[str](),
    "models": frozenset({"torch"}),
    "adapt": frozenset({"torch"}),
    "generation": frozenset({"torch"}),
}

# Where names differ from those of the distributions.
IMPORT_NAMES = {
    "pillow": "PIL",
    "huggingface-hub": "huggingface_hub",
    "faiss-cpu": "faiss",
    "prometheus-client": "prometheus_client",
    "python-multipart": "python_multipart",
}

# Rooms that as a whole need an extra: their modules import one another as they like.
ROOMS_OF_AN_EXTRA = frozenset({"serving"})

# Rooms that may import anything of the package inside functions, so that starting is quick.
LAZY = frozenset({"", "cli", "__main__"})

# What other rooms import inside functions: what is on the disk is found without the hub's library, which
# takes 0.2 s to import.
LATE = frozenset(
    {
        ("internvl.checkpoints.locate", "internvl.checkpoints.hub"),
        ("internvl.checkpoints.nano", "internvl.checkpoints.snapshot"),
    }
)


def distributions(requirements: list[str]) -> frozenset[str]:
    """`["pillow>=11"]` as the names that are imported."""
    names = [requirement.split(">=")[0].split("[")[0].strip() for requirement in requirements]
    return frozenset(IMPORT_NAMES.get(name, name) for name in names)


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = distributions(PROJECT["dependencies"])
OPTIONAL = distributions(
    [
        requirement
        for extra, requirements in PROJECT["optional-dependencies"].items()
        for requirement in requirements
        if extra not in {"test", "check", "all"}
    ]
) - {PROJECT["name"]}  # an extra may be made of others: "internvl[search]"


@pytest.mark.parametrize("module", modules(), ids=str)
def test_imports_of_the_package_follow_the_table(module: Module) -> None:
    assert module.package in ALLOWED, f"{module}: give {module.package!r} a row in ALLOWED"
    allowed = ALLOWED[module.package] | {module.package}
    for item in imports(module):
        top, _, rest = item.target.partition(".")
        target = rest.partition(".")[0]
        if top == "internvl" and not allowed & {target, "*"}:
            pytest.fail(f"{module}:{item.line}: {module.package} may not import {item.target}")


def extras_at_the_top(module: Module) -> frozenset[str]:
    """Extras without which the module cannot be imported."""
    needed = {
        item.target.partition(".")[0] for item in imports(module) if not (item.is_inner or item.is_typing)
    }
    return frozenset(needed & (OPTIONAL - CORE))


NEED_EXTRAS = frozenset(
    module.name for module in modules() if extras_at_the_top(module) or module.package in ROOMS_OF_AN_EXTRA
)


@pytest.mark.parametrize("module", modules(), ids=str)
def test_imports_of_the_package_are_at_the_top(module: Module) -> None:
    """Except of modules that need an extra: those are imported in the function that needs them."""
    for item in imports(module):
        where = f"{module}:{item.line}: import {item.target}"
        if item.is_typing or not item.target.startswith("internvl"):
            continue
        if item.target in NEED_EXTRAS:
            assert item.is_inner or module.name in NEED_EXTRAS, f"{where} in a function: it needs an extra"
        elif module.package not in LAZY and (module.name, item.target) not in LATE:
            assert not item.is_inner, f"{where} at the top of the file"


def test_the_package_itself_is_no_extra() -> None:
    """Nearly every module would need one, and nothing would have to be at the top."""
    assert "faiss" in OPTIONAL
    assert "internvl" not in OPTIONAL
    assert "internvl.api.load" not in NEED_EXTRAS


def test_what_is_imported_late_still_is() -> None:
    inner = {(module.name, item.target) for module in modules() for item in imports(module) if item.is_inner}
    assert inner >= LATE


@pytest.mark.parametrize("module", modules(), ids=str)
def test_third_parties_are_declared_and_in_their_rooms(module: Module) -> None:
    for item in imports(module):
        name = item.target.partition(".")[0]
        if name == "internvl" or name in sys.stdlib_module_names:
            continue
        where = f"{module}:{item.line}: {name}"
        assert name in CORE | OPTIONAL, f"{where} is not a dependency in pyproject.toml"
        assert name in THIRD_PARTY.get(module.package, CORE | OPTIONAL), f"{where} does not belong here"


def test_no_cycles_between_modules() -> None:
    known = {module.name for module in modules()}
    graph = {module.name: sorted({item.target for item in imports(module)} & known) for module in modules()}
    assert find_cycle(graph) is None


def test_the_table_has_no_cycles() -> None:
    rooms = {room: sorted(targets - {"*"}) for room, targets in ALLOWED.items()}
    assert find_cycle(rooms) is None


def test_find_cycle_finds_one() -> None:
    assert find_cycle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c", "b"]
    assert find_cycle({"a": ["b", "c"], "b": ["c"], "c": []}) is None


def find_cycle(graph: dict[str, list[str]]) -> list[str] | None:
    """A path that returns to its start, or None."""
    finished: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in finished:
            return None
        for target in graph[node]:
            if cycle := visit(target, [*path, node]):
                return cycle
        finished.add(node)
        return None

    return next((cycle for node in graph if (cycle := visit(node, []))), None)
