"""What the server and the process of its engine say to each other, and how that travels.

Messages are pickles: both ends are this program, and nobody else has the pipe. Tensors go behind them as the
bytes they are, so that tiles are copied into the pipe and out of it, and nowhere else. Deadlines hold on both
sides: the monotonic clock is the machine's.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

import torch
from torch import Tensor

from internvl.engine.planner import Sizes
from internvl.engine.request import Delta, EngineRequest
from internvl.engine.settings import EngineSettings, EngineStats
from internvl.errors import InternVLError

Order: TypeAlias = EngineRequest | str
"""A request to be answered, or the key of one to be cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The engine takes requests, and is of this size."""

    settings: EngineSettings
    sizes: Sizes
    stats: EngineStats


@dataclass(frozen=True, slots=True, kw_only=True)
class NotStarted:
    """There will be no engine, for this reason."""

    error: InternVLError | OSError


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What a step gave, and who was refused before it, by key. It comes without a step, too: as a sign of
    life."""

    deltas: Sequence[Delta]
    refusals: Mapping[str, InternVLError]
    stats: EngineStats


Message: TypeAlias = Ready | NotStarted | News


class _Pickler(pickle.Pickler):
    """Leaves the contents of tensors out."""

    def reducer_override(self, obj: Any) -> Any:
        return (torch.from_numpy, (obj.numpy(),)) if isinstance(obj, Tensor) else NotImplemented


def pack(order: Order) -> list[bytes | memoryview]:
    """An order as `send_parts` takes it; the tensors (on the CPU) must stay as they are until it was sent."""
    file, contents = io.BytesIO(), list[pickle.PickleBuffer]()
    _Pickler(file, protocol=5, buffer_callback=contents.append).dump(order)
    return [file.getvalue(), *(content.raw() for content in contents)]


def send_parts(connection: Connection, parts: Sequence[bytes | memoryview]) -> None:
    """Blocks until the other side has read most of it. Raises OSError when it is gone."""
    connection.send_bytes(len(parts).to_bytes(4, "little"))
    for part in parts:
        connection.send_bytes(part)


def receive_order(connection: Connection) -> Order:
    """What `send_parts` has sent. Raises EOFError or OSError when the other side is gone."""
    count = int.from_bytes(connection.recv_bytes(), "little")
    head, *contents = [connection.recv_bytes() for _ in range(count)]
    order: Order = pickle.loads(head, buffers=map(bytearray, contents))
    return order
