"""The process that computes answers: loads the model, steps the engine, reports every step.

Ends as soon as the server is gone, whatever it is doing. Knows no HTTP and no asyncio.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from threading import Thread

import torch

from internvl.engine.engine import Engine
from internvl.engine.request import EngineRequest
from internvl.errors import InternVLError
from internvl.serving.engine_messages import News, NotStarted, Order, Ready, receive_order

IDLE_SECONDS = 0.5
"""An engine without work says this often that it is alive."""


def serve(connection: Connection, make: Callable[[], Engine]) -> None:
    """Answers until the other side is gone. The body of the process."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they are for the server, which lets requests finish
        signal.signal(number, signal.SIG_IGN)
    worker = Worker(connection)
    Thread(target=worker.listen, daemon=True).start()
    try:
        engine = make()
    except (InternVLError, OSError) as error:
        connection.send(NotStarted(error=error))
    else:
        # All engines are forked from one process, whose random numbers they would draw again.
        torch.seed()
        worker.run(engine)


class Worker:
    """One thread hears orders, another steps."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._orders: SimpleQueue[Order] = SimpleQueue()
        self._engine: Engine | None = None

    def listen(self) -> None:
        """Takes orders for the next step. When nobody can give any the process ends at once."""
        try:
            with suppress(EOFError, OSError):
                while True:
                    order = receive_order(self._connection)
                    self._compile_form(order)
                    self._orders.put(order)
        finally:
            os._exit(1)

    def run(self, engine: Engine) -> None:
        """Steps for ever."""
        self._engine = engine
        sizes = engine.intake.sizes
        self._connection.send(Ready(settings=engine.settings, sizes=sizes, stats=engine.stats()))
        while True:
            refusals = self._obey(engine)
            deltas = engine.step() if engine.has_work else []
            self._connection.send(News(deltas=deltas, refusals=refusals, stats=engine.stats()))

    def _compile_form(self, order: Order) -> None:
        """Here no step waits for it, and the engine remembers it."""
        if self._engine and isinstance(order, EngineRequest) and order.constraint:
            with suppress(InternVLError):  # submitting says what is wrong
                self._engine.plan(order)

    def _obey(self, engine: Engine) -> dict[str, InternVLError]:
        """Follows what has come, waiting for something if there is no work; tells who was refused."""
        refusals: dict[str, InternVLError] = {}
        with suppress(Empty):
            order = self._orders.get(not engine.has_work, IDLE_SECONDS)
            while True:
                try:
                    if isinstance(order, str):
                        engine.cancel(order)
                    else:
                        engine.submit(order)
                except InternVLError as error:
                    refusals[order if isinstance(order, str) else order.key] = error
                order = self._orders.get(block=False)
        return refusals
