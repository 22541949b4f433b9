"""What all routes share: the models, the places inside, uploaded files, and the processes that read media.

Knows no HTTP and no routes.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from PIL import Image

from internvl.api.chat import ChatModel
from internvl.api.contrastive import ContrastiveModel
from internvl.api.engine import make_engine
from internvl.api.vision import VisionModel
from internvl.engine.async_engine import AsyncEngine
from internvl.errors import EngineError, RequestError
from internvl.serving.admission import Admission
from internvl.serving.backend import Backend
from internvl.serving.chat_service import ChatService
from internvl.serving.decoders import Decoders
from internvl.serving.embedding import Embedder
from internvl.serving.files import FileStore
from internvl.serving.metrics import Metrics
from internvl.serving.prepare import Preparer, find_sources
from internvl.serving.protocol_messages import MediaReference
from internvl.serving.settings import Settings

Model: TypeAlias = ChatModel | ContrastiveModel | VisionModel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Server:
    """A chat model, a model for vectors, or both, with everything around them."""

    settings: Settings
    decoders: Decoders
    files: FileStore
    admission: Admission
    metrics: Metrics
    started: int
    chat: ChatService | None
    embedder: Embedder | None

    @property
    def fault(self) -> str | None:
        """Why no answers are computed: the engine does not run, or its step takes forever. None if all is
        well."""
        if self.chat is None:
            return None
        backend, limit = self.chat.backend, self.settings.stall_seconds
        if backend.is_alive:
            is_late = backend.last_step_age >= limit
            return f"a step of the engine takes more than {limit:g} s" if is_late else None
        # What failed inside is not told to strangers.
        return str(backend.failure) if isinstance(backend.failure, EngineError) else "the engine has stopped"

    @property
    def names(self) -> tuple[str, ...]:
        """What requests may call the models."""
        settings = self.settings
        has_both = self.chat is not None and self.embedder is not None
        chat_names = self.chat_names if self.chat is not None else settings.served_names
        return (*chat_names, *(settings.embedding_names if has_both else ()))

    @property
    def chat_names(self) -> tuple[str, ...]:
        """What requests may call the chat model, with its adapters."""
        return (*self.settings.served_names, *self.settings.adapter_names)

    def chat_service(self, name: str | None) -> tuple[ChatService, str]:
        """What chats under this name, and the name of answers. Raises RequestError with 404."""
        if self.chat is None:
            raise RequestError(
                "no chat model is served here, only /v1/embeddings",
                status=404,
                param="model",
                code="model_not_found",
            )
        return self.chat, self._check_name(name, self.chat_names)

    def embedding_service(self, name: str | None) -> tuple[Embedder, str]:
        """What embeds under this name, and the name of answers. Raises RequestError with 404."""
        if self.embedder is None:
            raise RequestError(
                "no model for vectors is served here: start the server with --embedding-model, or serve one",
                status=404,
                param="model",
                code="model_not_found",
            )
        settings = self.settings
        return self.embedder, self._check_name(
            name, settings.served_names if self.chat is None else settings.embedding_names
        )

    def find_name(self, name: str) -> str:
        """The same name. Raises RequestError with 404 for a model that is not served."""
        return self._check_name(name, self.names)

    def stop(self) -> None:
        """Answers that are being computed end with an error."""
        if self.chat is not None:
            self.chat.backend.stop()

    @asynccontextmanager
    async def read_pictures(self, references: Sequence[MediaReference]) -> AsyncIterator[list[Image.Image]]:
        """The first picture of each medium, as `Decoders.read_all`. Raises RequestError."""
        media = await find_sources(references, self.settings.media, self.files.content)
        async with self.decoders.read_all(media) as found:
            yield [pictures[0] for pictures in found]

    def _check_name(self, name: str | None, names: Sequence[str]) -> str:
        if name is not None and name not in names:
            raise RequestError(
                f"there is no model {name[:80]!r} here; there is {', '.join(names)}",
                status=404,
                param="model",
                code="model_not_found",
            )
        return name or names[0]


async def open_server(
    models: Sequence[Model], settings: Settings, stack: AsyncExitStack, backend: Backend | None = None
) -> Server:
    """A server whose parts run until `stack` is closed; they close in the opposite order.

    `backend` computes the answers of the chat model, which may be an outline then; without one, an engine in
    this process does.
    """
    metrics = Metrics(settings.served_names[0])
    admission = Admission(settings.engine.max_running + settings.max_num_queued, settings.max_per_key)
    folder = settings.files_path or Path(stack.enter_context(TemporaryDirectory(prefix="internvl-files-")))
    files = FileStore(folder)
    decoders = await stack.enter_async_context(
        Decoders(
            settings.media,
            num_workers=settings.media_workers,
            max_pixels_inside=settings.max_pixels_inside,
        )
    )
    talkers = [model for model in models if isinstance(model, ChatModel)]
    embedders = [model for model in models if not isinstance(model, ChatModel)]
    chat = None
    if talkers:
        if backend is None:
            engine = make_engine(
                talkers[0], settings.engine, adapters=dict(settings.adapters), keep_tags=True
            )
            backend = await stack.enter_async_context(AsyncEngine(engine))
        metrics.watch(backend, admission)
        preparer = Preparer(
            talkers[0],
            decoders,
            files.content,
            max_model_len=settings.engine.max_model_len,
            default_new_tokens=settings.default_new_tokens,
        )
        chat = ChatService(
            model=talkers[0],
            backend=backend,
            preparer=preparer,
            metrics=metrics,
            adapters=frozenset(settings.adapter_names),
        )
    return Server(
        settings=settings,
        decoders=decoders,
        files=files,
        admission=admission,
        metrics=metrics,
        started=int(time.time()),
        chat=chat,
        embedder=Embedder(embedders[0]) if embedders else None,
    )
