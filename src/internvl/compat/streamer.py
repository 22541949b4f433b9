"""An answer read in one thread while another writes it.

Knows pieces of text and a queue; no model. A writer that fails is reported to the reader, who therefore
need not guess from a time limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from queue import Empty, Queue
from types import TracebackType
from typing import Any, Self

from internvl.compat.generation_config import as_dict
from internvl.errors import InputError


class TextIteratorStreamer(Iterator[str], AbstractContextManager[Any, None]):
    """Iterate over it for the pieces of text; pass it as `generation_config["streamer"]`.

    Pieces never hold half a character. `timeout` (seconds) bounds the wait for each piece, but not for the
    first once the model has begun: reading a long prompt may take its time. `queue.Empty` is raised after it.
    An error of the model's is raised here, too.
    """

    def __init__(
        self,
        tokenizer: Any = None,
        skip_prompt: bool = True,
        timeout: float | None = None,
        skip_special_tokens: bool = True,
        **decode_kwargs: Any,
    ) -> None:
        """The prompt is never part of the pieces; without `skip_special_tokens` grounding tags are."""
        unknown = decode_kwargs.keys() - {"clean_up_tokenization_spaces"}
        if unknown:
            raise InputError(f"unknown option of the streamer: {', '.join(sorted(unknown))}")
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.timeout = timeout
        self.skip_special_tokens = skip_special_tokens
        self._pieces: Queue[str | None] = Queue()
        self._error: BaseException | None = None
        self._is_waiting = self._is_over = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """The writer's side: one more piece, or the end."""
        if text:
            self._pieces.put(text)
        if stream_end:
            self._pieces.put(None)

    def __enter__(self) -> Self:
        """The writer begins to read its prompt."""
        self._is_waiting, self._is_over, self._error = True, False, None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The writer is done, or has failed."""
        self._error = error
        self.on_finalized_text("", stream_end=True)

    def __next__(self) -> str:
        piece = None if self._is_over else self._next_piece()
        self._is_waiting = False
        if piece is not None:
            return piece
        self._is_over = True
        if self._error is not None:
            raise self._error
        raise StopIteration

    def _next_piece(self) -> str | None:
        while True:
            try:
                return self._pieces.get(timeout=self.timeout)
            except Empty:
                if not self._is_waiting:
                    raise


def writing(generation_config: Any) -> AbstractContextManager[Any, None]:
    """Entered while an answer is written for the streamer of these settings, if they have one.

    Streamers of other makers are told of the end only. Raises InputError for what is no streamer of text.
    """
    streamer = as_dict(generation_config).get("streamer")
    if isinstance(streamer, TextIteratorStreamer):
        return streamer
    if streamer is None:
        return nullcontext()
    if not callable(getattr(streamer, "on_finalized_text", None)):
        raise InputError(
            f"a streamer needs on_finalized_text(text, stream_end), which {type(streamer).__name__} lacks; "
            "use TextIteratorStreamer"
        )
    return _Ending(streamer)


class _Ending(AbstractContextManager[None, None]):
    """Tells a streamer that the text has ended, whatever ended it."""

    def __init__(self, streamer: Any) -> None:
        self._streamer = streamer

    def __exit__(self, *reason: object) -> None:
        self._streamer.on_finalized_text("", stream_end=True)
