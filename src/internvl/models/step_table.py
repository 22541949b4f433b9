"""What the step kernel knows of a decoder's blocks, kept from step to step while they are the same.

Making it takes some hundred addresses out of modules, which is longer than a block of the kernel. Knows no
kernel: a table is bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import compress
from typing import NamedTuple
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn


class _Place(NamedTuple):
    """Where a module hangs: its parent's modules, and its name among them."""

    siblings: dict[str, nn.Module | None]
    name: str


class _State(NamedTuple):
    """Where the tensors of some modules lie, and as what."""

    addresses: list[int]
    dtypes: list[torch.dtype]


class _Kept(NamedTuple):
    """Modules by their places. Weakly: what was replaced must not stay in memory for a table's sake."""

    places: list[_Place]
    modules: list[ReferenceType[nn.Module]]
    has_tensors: list[bool]
    state: _State
    table: bytes

    def is_same(self) -> bool:
        """Asked for every token: no calls of our own for each module."""
        modules = [siblings.get(name) for siblings, name in self.places]
        found = [module for module in modules if module is not None]
        if len(found) < len(modules) or found != [module() for module in self.modules]:
            return False
        return _state(compress(found, self.has_tensors)) == self.state


class StepTable:
    """Bytes made of the tensors of some modules, forgotten when a module is replaced or a tensor moves.

    A copy is empty, also one by pickle: addresses are those of one model in one process.
    """

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    def __reduce__(self) -> tuple[type[StepTable], tuple[()]]:
        return StepTable, ()

    def read(self) -> bytes | None:
        """What was kept, None if there is nothing or the modules are no longer the same."""
        if self._kept is not None and not self._kept.is_same():
            self._kept = None
        return self._kept and self._kept.table

    def keep(self, root: nn.Module, table: bytes) -> None:
        """A table made of all modules below `root`."""
        places, modules = zip(*_parts(root), strict=True)
        has_tensors = [bool(_tensors([module])) for module in modules]
        state = _state(compress(modules, has_tensors))
        self._kept = _Kept(list(places), [ref(module) for module in modules], has_tensors, state, table)


def _parts(root: nn.Module) -> Iterator[tuple[_Place, nn.Module]]:
    for name, module in root.named_children():
        yield _Place(root._modules, name), module
        yield from _parts(module)


def _tensors(modules: Iterable[nn.Module]) -> list[Tensor]:
    """The modules' own parameters and buffers."""
    return [
        tensor
        for module in modules
        for own in (module._parameters, module._buffers)
        for tensor in own.values()
        if tensor is not None
    ]


def _state(modules: Iterable[nn.Module]) -> _State:
    tensors = _tensors(modules)
    return _State([*map(Tensor.data_ptr, tensors)], [tensor.dtype for tensor in tensors])
