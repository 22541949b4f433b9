"""Every way a request can fail, as a status and an OpenAI error object.

Knows errors, not what raised them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from internvl.errors import (
    CapacityError,
    ContextOverflowError,
    DeadlineError,
    EngineError,
    InputError,
    InternVLError,
    QueueFullError,
    RequestError,
)
from internvl.serving.admission import RETRY_SECONDS
from internvl.serving.json_text import JsonAnswer
from internvl.serving.protocol import FAILED, error_object

KINDS: Mapping[int, str] = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
UNKNOWN_FIELD = "extra_forbidden"
MEDIA_CODES = ("media_", "invalid_image", "invalid_video", "invalid_document")
SOURCES = frozenset({"body", "query", "path", "header"})
BRANCHES = frozenset(
    {"system", "developer", "user", "assistant", "tool", "text", "image_url", "video_url", "file"}
    | {"input_text", "output_text", "input_image", "input_file"}
    | {"message", "function_call", "function_call_output"}
)
TYPES = frozenset({"str", "int", "float", "bool", "none"})


def status_of(error: InternVLError) -> int:
    """What was handed over is the client's fault, a full or stopped engine passes, the rest is ours."""
    if isinstance(error, RequestError):
        return error.status
    if isinstance(error, QueueFullError):
        return 429
    if isinstance(error, InputError):
        return 400
    return 503 if isinstance(error, EngineError) else 500


def as_object(error: InternVLError) -> dict[str, Any]:
    """The error object; what went wrong inside is not told to strangers."""
    status = status_of(error)
    param, code = (error.param, error.code) if isinstance(error, RequestError) else (None, None)
    if isinstance(error, ContextOverflowError):
        param, code = "messages", "context_length_exceeded"
    elif isinstance(error, CapacityError):
        param, code = "messages", "capacity_exceeded"
    elif isinstance(error, QueueFullError):
        code = "queue_full"
    elif isinstance(error, DeadlineError):
        code = "deadline_exceeded"
    message = str(error) if status < 500 or isinstance(error, EngineError) else FAILED
    return error_object(message, kind=KINDS.get(status, "invalid_request_error"), param=param, code=code)


def refuse(error: InternVLError) -> JsonAnswer:
    """The whole answer."""
    status = status_of(error)
    headers = {"Retry-After": str(RETRY_SECONDS)} if status in (429, 503) else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JsonAnswer(as_object(error), status_code=status, headers=headers)


async def on_error(request: Request, error: Exception) -> JsonAnswer:
    """What the package raises on purpose; refused media are counted by reason."""
    assert isinstance(error, InternVLError)
    code = getattr(error, "code", None) or ""
    if code.startswith(MEDIA_CODES):
        request.app.state.server.metrics.count_refused(code)
    return refuse(error)


async def on_http_error(_: Request, error: Exception) -> JsonAnswer:
    """No such path, a wrong method, a body that is no JSON."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, OSError):  # a large upload is kept in a file while it is read
        return refuse(EngineError(f"the upload could not be kept: {error.__cause__.strerror}"))
    phrase = str(error.detail or HTTPStatus(error.status_code).phrase)
    kind = KINDS.get(error.status_code, "invalid_request_error")
    return JsonAnswer(
        error_object(phrase, kind=kind), status_code=error.status_code, headers=dict(error.headers or {})
    )


async def on_invalid(_: Request, error: Exception) -> JsonAnswer:
    """The first thing that is wrong with a body, by its place in it."""
    assert isinstance(error, RequestValidationError)
    return JsonAnswer(invalid_object(error.errors()), status_code=400)


def invalid_object(errors: Sequence[Any]) -> dict[str, Any]:
    """The error object of what pydantic found."""
    return as_object(as_request_error(errors))


def as_request_error(errors: Sequence[Any]) -> RequestError:
    """What pydantic found as an error of ours."""
    found = _telling(errors)
    param = _place(found["loc"])
    if found["type"] == UNKNOWN_FIELD:
        message = f"unsupported field {param!r}: this server refuses what it would have to ignore"
    else:
        message = f"{param or 'the body'}: {found['msg'].removeprefix('Value error, ')}"
    code = "unsupported_field" if found["type"] == UNKNOWN_FIELD else "invalid_value"
    return RequestError(message, param=param, code=code)


async def on_failure(_: Request, __: Exception) -> JsonAnswer:
    """What nobody expected; the traceback is in the server's log."""
    return JsonAnswer(error_object(FAILED, kind="server_error"), status_code=500)


def _telling(errors: Sequence[Any]) -> Any:
    """Of the branches of a union, the one that got furthest says what is wrong."""
    return max(errors, key=lambda found: (len(_fields(found["loc"])), found["type"] == UNKNOWN_FIELD))


def _fields(place: Sequence[Any]) -> list[Any]:
    """A place without where it was read from, and without the branches of unions.

    Those are names of types, and between an item of a list and its fields the word that chose them.
    """
    inner = place[1:] if place and place[0] in SOURCES else place
    kept: list[Any] = []
    for index, part in enumerate(inner):
        is_type = isinstance(part, str) and (part in TYPES or "[" in part)
        is_branch = part in BRANCHES and index > 0 and isinstance(inner[index - 1], int)
        if not is_type and not (is_branch and index < len(inner) - 1):
            kept.append(part)
    return kept


def _place(place: Sequence[Any]) -> str | None:
    """("body", "messages", 0, "user", "content") as "messages[0].content"."""
    path = ""
    for part in _fields(place):
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path or None
