"""JSON that can be sent whatever strings it holds: as text, and as an answer over HTTP."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import JSONResponse


def json_text(document: Any, **options: Any) -> str:
    """JSON on one line; `options` are those of `json.dumps`.

    Clients and models may write half of a surrogate pair, as an escape. UTF-8 has no bytes for it, so it
    becomes the same escape again; all other letters stand as they are.
    """
    text = json.dumps(document, ensure_ascii=False, **options)
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


class JsonAnswer(JSONResponse):
    """What every answer in JSON is made of. Raises ValueError for numbers that JSON does not have."""

    def render(self, content: Any) -> bytes:
        return json_text(content, allow_nan=False, separators=(",", ":")).encode("utf-8")
