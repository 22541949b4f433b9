"""The size report: `python -m tests.architecture.report` prints lengths and what is over budget."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tests.architecture.source import Function, Module, functions, modules

FUNCTION_LIMIT = 60
FUNCTION_WATCHED = 40
FUNCTION_P90 = 25
MODULE_LIMIT = 300
DATA_MODULES = frozenset({"internvl.zoo", "internvl.checkpoints.layouts", "internvl.evaluation.tasks"})


@dataclass(frozen=True)
class Sizes:
    num_modules: int
    num_lines: int
    function_lines: tuple[int, ...]

    def percentile(self, percent: int) -> int:
        """The smallest length that `percent` of the functions do not exceed."""
        ordered = sorted(self.function_lines)
        return ordered[max(0, -(-len(ordered) * percent // 100) - 1)] if ordered else 0


def measure(found: Sequence[Module]) -> Sizes:
    return Sizes(
        len(found),
        sum(module.num_lines for module in found),
        tuple(function.num_lines for module in found for function in functions(module)),
    )


def is_data(module: Module) -> bool:
    """Tables may be long: the named ones, and files that hold no code at all."""
    return module.name in DATA_MODULES or not functions(module)


def long_modules(found: Sequence[Module]) -> list[Module]:
    return [module for module in found if module.num_lines > MODULE_LIMIT and not is_data(module)]


def long_functions(found: Sequence[Module], limit: int) -> list[tuple[Module, Function]]:
    pairs = [(module, function) for module in found for function in functions(module)]
    return [(module, function) for module, function in pairs if function.num_lines > limit]


def main() -> int:
    found = modules()
    sizes = measure(found)
    per_module = [module.num_lines for module in found] or [0]
    lines = [
        f"{sizes.num_lines} lines in {sizes.num_modules} modules "
        f"(median {statistics.median(per_module):.0f}, longest {max(per_module)})",
        f"{len(sizes.function_lines)} functions: p50 {sizes.percentile(50)}, p90 {sizes.percentile(90)}"
        f" (budget {FUNCTION_P90}), longest {sizes.percentile(100)} (limit {FUNCTION_LIMIT})",
    ]
    for module, function in long_functions(found, FUNCTION_WATCHED):
        mark = "OVER" if function.num_lines > FUNCTION_LIMIT else "long"
        lines.append(f"  {mark}: {module}:{function.line} {function.name}, {function.num_lines} lines")
    over = long_modules(found)
    lines += [f"  OVER: {module}, {module.num_lines} lines (limit {MODULE_LIMIT})" for module in over]
    sys.stdout.write("\n".join(lines) + "\n")
    return int(bool(over or long_functions(found, FUNCTION_LIMIT) or sizes.percentile(90) > FUNCTION_P90))


if __name__ == "__main__":
    sys.exit(main())
