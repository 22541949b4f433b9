"""The application: which path is answered by whom, and what stands around all of them.

Nothing is computed here; what `make_app` needs is started with the application and ends with it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException

from internvl.errors import InternVLError
from internvl.serving import refusals, routes, routes_batches, routes_files
from internvl.serving.answer_row import answer_row
from internvl.serving.backend import Backend
from internvl.serving.batches import Batches
from internvl.serving.guard import Guard
from internvl.serving.json_text import JsonAnswer
from internvl.serving.server import Model, open_server
from internvl.serving.settings import Settings

ROUTES: tuple[tuple[str, str, Callable[..., Awaitable[Any]]], ...] = (
    ("POST", "/v1/chat/completions", routes.chat_completions),
    ("POST", "/v1/completions", routes.completions),
    ("POST", "/v1/responses", routes.responses),
    ("POST", "/v1/embeddings", routes.embeddings),
    ("GET", "/v1/models", routes.list_models),
    ("GET", "/v1/models/{model:path}", routes.find_model),
    ("POST", "/v1/files", routes_files.upload_file),
    ("GET", "/v1/files", routes_files.list_files),
    ("GET", "/v1/files/{file_id}", routes_files.find_file),
    ("GET", "/v1/files/{file_id}/content", routes_files.file_content),
    ("DELETE", "/v1/files/{file_id}", routes_files.delete_file),
    ("POST", "/v1/batches", routes_batches.create_batch),
    ("GET", "/v1/batches", routes_batches.list_batches),
    ("GET", "/v1/batches/{batch_id}", routes_batches.find_batch),
    ("POST", "/v1/batches/{batch_id}/cancel", routes_batches.cancel_batch),
    ("POST", "/tokenize", routes.tokenize),
    ("POST", "/detokenize", routes.detokenize),
    ("POST", "/explain", routes.explain),
    ("GET", "/health", routes.health),
    ("GET", "/metrics", routes.metrics),
)


def make_app(
    model: Model,
    settings: Settings,
    *,
    embedding_model: Model | None = None,
    backend: Backend | None = None,
) -> FastAPI:
    """A server for one model, and perhaps another that makes vectors. `backend` as in `open_server`."""
    models = [model] if embedding_model is None else [model, embedding_model]

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            server = await open_server(models, settings, stack, backend)
            app.state.server = server
            batches = Batches(
                server.files, partial(answer_row, server), concurrency=settings.engine.max_running
            )
            app.state.batches = await stack.enter_async_context(batches)
            yield

    app = FastAPI(
        title="internvl",
        version=version("internvl"),
        lifespan=lifespan,
        default_response_class=JsonAnswer,
        docs_url=None,
        redoc_url=None,
    )
    for method, path, handler in ROUTES:
        app.add_api_route(path, handler, methods=[method], response_model=None)
    app.add_exception_handler(InternVLError, refusals.on_error)
    app.add_exception_handler(RequestValidationError, refusals.on_invalid)
    app.add_exception_handler(HTTPException, refusals.on_http_error)
    app.add_exception_handler(Exception, refusals.on_failure)
    app.add_middleware(Guard, settings=settings)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.allowed_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
        )
    return app
