"""Routes for uploaded files. Knows HTTP; the files are kept by `files`."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import File, Form, UploadFile
from fastapi.responses import Response

from internvl.errors import RequestError
from internvl.serving.routes import Here


async def upload_file(
    server: Here, file: Annotated[UploadFile, File()], purpose: Annotated[str, Form()]
) -> dict[str, Any]:
    """Keep a file: a picture, PDF or video to be named in messages, or the lines of a batch."""
    content = await file.read()
    upload = await asyncio.to_thread(server.files.add, content, file.filename or "", purpose)
    return upload.as_json()


async def list_files(server: Here, purpose: str | None = None) -> dict[str, Any]:
    """All files, or those of one purpose."""
    found = [one for one in server.files.list() if purpose in (None, one.purpose)]
    return {"object": "list", "data": [one.as_json() for one in found], "has_more": False}


async def find_file(file_id: str, server: Here) -> dict[str, Any]:
    """The description of a file."""
    return server.files.find(file_id).as_json()


async def file_content(file_id: str, server: Here) -> Response:
    """The content of a file."""
    server.files.find(file_id)
    content = await asyncio.to_thread(server.files.content, file_id)
    if content is None:
        raise RequestError(f"there is no file {file_id[:80]!r}", status=404, code="file_not_found")
    return Response(content, media_type="application/octet-stream")


async def delete_file(file_id: str, server: Here) -> dict[str, Any]:
    """Forget a file."""
    await asyncio.to_thread(server.files.delete, file_id)
    return {"id": file_id, "object": "file", "deleted": True}
