"""Functions fit a screen, modules a sitting."""

from __future__ import annotations

import pytest

from tests.architecture.report import (
    FUNCTION_LIMIT,
    FUNCTION_P90,
    MODULE_LIMIT,
    Sizes,
    long_functions,
    long_modules,
    measure,
)
from tests.architecture.source import Module, modules


@pytest.mark.parametrize("module", modules(), ids=str)
def test_module_is_within_the_limit(module: Module) -> None:
    assert not long_modules([module]), f"{module} has {module.num_lines} lines, more than {MODULE_LIMIT}"


@pytest.mark.parametrize("module", modules(), ids=str)
def test_functions_are_within_the_limit(module: Module) -> None:
    over = [f"{f.name} (line {f.line}): {f.num_lines}" for _, f in long_functions([module], FUNCTION_LIMIT)]
    assert not over, f"{module}: longer than {FUNCTION_LIMIT} lines: {', '.join(over)}"


def test_nine_functions_of_ten_are_short() -> None:
    assert measure(modules()).percentile(90) <= FUNCTION_P90


def test_percentile_of_known_lengths() -> None:
    sizes = Sizes(1, 100, tuple(range(1, 11)))
    assert [sizes.percentile(p) for p in (0, 50, 90, 91, 100)] == [1, 5, 9, 10, 10]
