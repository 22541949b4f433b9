"""Configurations are frozen values that know neither torch nor the environment."""

from __future__ import annotations

import ast
import dataclasses
import inspect

import pytest

import internvl.config
from tests.architecture.source import Module, imports, modules

CONFIGS = [
    value
    for value in vars(internvl.config).values()
    if inspect.isclass(value) and value.__module__ == internvl.config.__name__
]
MAX_FIELDS = 25


@pytest.mark.parametrize("config", CONFIGS)
def test_config_is_a_frozen_value(config: type) -> None:
    assert dataclasses.is_dataclass(config)
    assert config.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert "__slots__" in vars(config)
    assert all(field.kw_only for field in dataclasses.fields(config))


@pytest.mark.parametrize("config", CONFIGS)
def test_config_has_few_enough_switches(config: type) -> None:
    assert len(dataclasses.fields(config)) <= MAX_FIELDS, "split it by family"


@pytest.mark.parametrize("config", CONFIGS)
def test_config_defaults_cannot_be_changed(config: type) -> None:
    for field in dataclasses.fields(config):
        assert field.default_factory is dataclasses.MISSING, f"{field.name} is made anew for every value"
        if field.default is not dataclasses.MISSING:
            hash(field.default)


def test_config_classes_exist() -> None:
    assert len(CONFIGS) >= 5


def test_config_module_reads_nothing() -> None:
    (config,) = (module for module in modules() if module.name == "internvl.config")
    targets = {item.target.partition(".")[0] for item in imports(config)}
    assert not targets & {"os", "sys", "json", "pathlib", "torch", "numpy"}


@pytest.mark.parametrize("module", modules(), ids=str)
def test_nothing_changes_a_frozen_value(module: Module) -> None:
    """`object.__setattr__` may complete a value while it is made, and not touch it later."""
    making = {
        id(node)
        for scope in ast.walk(module.tree)
        if isinstance(scope, ast.FunctionDef) and scope.name == "__post_init__"
        for node in ast.walk(scope)
    }
    found = [
        node.lineno
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and node.attr == "__setattr__" and id(node) not in making
    ]
    assert not found, f"{module}: __setattr__ in lines {found}; make a new value with dataclasses.replace"
