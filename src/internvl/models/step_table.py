"""What the step kernel knows of a decoder's blocks, kept from step to step while they are the same.

Making it takes some hundred addresses out of modules, which is longer than a block of the kernel. Knows no
kernel: a table is bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple
from weakref import ReferenceType, ref

from torch import nn


class _Part(NamedTuple):
    """A module in its place. Weakly: what was replaced must not stay in memory for a table's sake."""

    siblings: dict[str, nn.Module | None]
    name: str
    module: ReferenceType[nn.Module]
    state: list[Any]

    def is_same(self) -> bool:
        module = self.siblings.get(self.name)
        if module is None or module is not self.module():
            return False
        return not self.state or _state(module) == self.state


class StepTable:
    """Bytes made of the tensors of some modules, forgotten when a module is replaced or a tensor moves.

    A copy is empty, also one by pickle: addresses are those of one model in one process.
    """

    def __init__(self) -> None:
        self._kept: tuple[list[_Part], bytes] | None = None

    def __reduce__(self) -> tuple[type[StepTable], tuple[()]]:
        return StepTable, ()

    def read(self) -> bytes | None:
        """What was kept, None if there is nothing or the modules are no longer the same."""
        kept = self._kept
        if kept is None or all(part.is_same() for part in kept[0]):
            return None if kept is None else kept[1]
        self._kept = None
        return None

    def keep(self, root: nn.Module, table: bytes) -> None:
        """A table made of all modules below `root`."""
        self._kept = list(_parts(root)), table


def _parts(root: nn.Module) -> Iterator[_Part]:
    for name, module in root.named_children():
        yield _Part(root._modules, name, ref(module), _state(module))
        yield from _parts(module)


def _state(module: nn.Module) -> list[Any]:
    """Where a module's own tensors lie, and as what."""
    tensors = [*module._parameters.values(), *module._buffers.values()]
    return [(tensor.data_ptr(), tensor.dtype) for tensor in tensors if tensor is not None]
