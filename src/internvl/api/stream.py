"""An answer while it is being written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from internvl.api.reply import Reply
from internvl.errors import InputError
from internvl.generation.generate import Batch
from internvl.generation.result import Generation


class Stream(Iterator[str]):
    """Pieces of text; never half a character, never the beginning of a stop string.

    `reply` is there once the stream has ended. `close` ends it early: `reply` is then what was written.
    An exception (Ctrl-C) in the consumer leaves nothing behind: drop the stream, close it, or use `with`.
    """

    def __init__(self, batch: Batch, finish: Callable[[Generation, float], Reply]) -> None:
        self._batch, self._finish = batch, finish
        self._start = time.perf_counter()
        self._reply: Reply | None = None
        self.first_token_seconds: float | None = None

    def __next__(self) -> str:
        while self._batch.live:
            (token,) = self._batch.step()
            if self.first_token_seconds is None:
                self.first_token_seconds = time.perf_counter() - self._start
            if token.text:
                return token.text
        self.close()
        raise StopIteration

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End now. Does nothing when the stream has ended."""
        if self._reply is None:
            self._batch.cancel()
            (answer,) = self._batch.answers
            self._reply = self._finish(answer.result(), time.perf_counter() - self._start)

    @property
    def reply(self) -> Reply:
        """The whole answer. Raises InputError while it is still being written."""
        if self._reply is None:
            raise InputError("the answer is not finished: iterate to the end, or close the stream")
        return self._reply
