"""The process that reads media: fetches, decodes, and answers with plain pixels.

It holds nothing of the server and can be killed at any moment. Jobs come and answers go as JSON and bytes,
never as pickles: what a decoder that was taken over might send is data. Imports no torch.
"""

from __future__ import annotations

import io
import json
import resource
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from PIL import Image

from internvl.errors import DocumentError, ImageError, InputError, RequestError, VideoError
from internvl.processing.clip import VideoLimits
from internvl.processing.document import DocumentLimits, load_pages
from internvl.processing.fetch import fetch
from internvl.processing.image import FORMATS, ImageLimits, load_image
from internvl.processing.video import load_frames
from internvl.serving.media import MediaPolicy, Medium

MEMORY = 4 * 2**30
"""Address space of the process; what wants more is refused as damaged."""
PDF_HEAD = 1024
"""A PDF may begin with other bytes, but not more than these."""
STILL = frozenset({"JPEG", "MPO", "PPM", "BMP"})
"""Formats in which a second picture is no animation (MPO: phones add depth and previews)."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a medium was refused; `code` names the reason for programs and metrics."""

    message: str
    code: str
    status: int = 400

    def as_error(self, param: str | None) -> RequestError:
        return RequestError(self.message, status=self.status, param=param, code=self.code)


def write_job(medium: Medium, policy: MediaPolicy) -> tuple[bytes, bytes]:
    """A job as it is sent: a JSON head and the content."""
    limits = {name: getattr(policy, name) for name in MediaPolicy.__dataclass_fields__}
    limits["allowed_local_path"] = None  # the path was checked before it came here
    head = {
        "kind": medium.kind,
        "url": medium.url,
        "path": None if medium.path is None else str(medium.path),
        "options": dict(medium.options),
        "policy": limits,
    }
    return json.dumps(head).encode(), medium.content or b""


def serve(connection: Connection) -> None:
    """Takes jobs until the other side closes. The body of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then closes the pipe
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with suppress(EOFError, BrokenPipeError, ConnectionError):
        while True:
            _answer(connection, json.loads(connection.recv_bytes()), connection.recv_bytes())


def _answer(connection: Connection, head: Mapping[str, Any], content: bytes) -> None:
    try:
        pictures = read(head, content)
    except InputError as reason:
        failure = _failure(reason)
        document = {"message": failure.message, "code": failure.code, "status": failure.status}
        connection.send_bytes(json.dumps(document).encode())
        return
    except MemoryError:
        document = {"message": "decoding it takes too much memory", "code": "media_memory", "status": 413}
        connection.send_bytes(json.dumps(document).encode())
        return
    connection.send_bytes(json.dumps({"sizes": [picture.size for picture in pictures]}).encode())
    for picture in pictures:
        connection.send_bytes(picture.tobytes())


def _failure(reason: InputError) -> Failure:
    if isinstance(reason, RequestError):
        return Failure(str(reason), reason.code or "media", reason.status)
    codes = {ImageError: "invalid_image", VideoError: "invalid_video", DocumentError: "invalid_document"}
    return Failure(str(reason), codes.get(type(reason), "invalid_media"))


def read(head: Mapping[str, Any], content: bytes) -> Sequence[Image.Image]:
    """RGB pictures of a job. Raises InputError for whatever is wrong with it."""
    policy = MediaPolicy(**{**head["policy"], "allowed_domains": tuple(head["policy"]["allowed_domains"])})
    if head["url"] is not None:
        content = _fetch(head["url"], policy)
    elif head["path"] is not None:
        content = _read_path(Path(head["path"]), policy)
    kind = head["kind"]
    if kind == "file":
        kind = "document" if b"%PDF-" in content[:PDF_HEAD] else "image"
    if kind == "image":
        return [_picture(content, policy)]
    return _frames(content, head["options"], policy) if kind == "video" else _pages(content, head, policy)


def _fetch(url: str, policy: MediaPolicy) -> bytes:
    try:
        return fetch(
            url,
            max_bytes=policy.max_bytes,
            timeout=policy.seconds,
            allow_private_hosts=policy.allow_private_hosts,
            error=InputError,
            allows=policy.allows,
        )
    except InputError as reason:
        # Neither what stands behind an address nor how it failed is told to whoever asked for it.
        raise RequestError(
            f"cannot fetch {url[:200]!r} under the server's rules", code="media_fetch"
        ) from reason


def _read_path(path: Path, policy: MediaPolicy) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(policy.max_bytes + 1)
    except OSError as reason:
        raise RequestError("the local file cannot be read", code="media_path") from reason
    if len(content) > policy.max_bytes:
        raise RequestError(f"the file has more than {policy.max_bytes} bytes", status=413, code="media_bytes")
    return content


def _picture(content: bytes, policy: MediaPolicy) -> Image.Image:
    limits = ImageLimits(max_bytes=policy.max_bytes, max_pixels=policy.max_pixels, allow_paths=False)
    _check_shape(content, policy)
    return load_image(content, limits)


def _check_shape(content: bytes, policy: MediaPolicy) -> None:
    """From the header: sides, and that there is one picture. Other faults are found in reading."""
    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
        (width, height), several = picture.size, getattr(picture, "is_animated", False)
    except (OSError, ValueError, SyntaxError, RuntimeError, EOFError, Image.DecompressionBombError):
        return
    short, long = sorted((width, height))
    if short and (long > policy.max_side or long > policy.max_aspect * short):
        raise ImageError(
            f"a picture of {width} x {height} pixels: a side may have {policy.max_side} pixels and be "
            f"{policy.max_aspect} times as long as the other"
        )
    if several and picture.format not in STILL:
        raise ImageError(
            f"an animated or paged {picture.format}: send it as a video, or one picture of it as PNG"
        )


def _frames(content: bytes, options: Mapping[str, Any], policy: MediaPolicy) -> list[Image.Image]:
    limits = VideoLimits(
        max_bytes=policy.max_bytes,
        max_seconds=policy.max_video_seconds,
        max_frames=policy.max_frames,
        max_pixels=policy.max_pixels,
        max_total_pixels=policy.max_total_pixels,
        allow_paths=False,
    )
    bound = options.get("bound")
    return load_frames(content, **{**options, "bound": tuple(bound) if bound else None}, limits=limits)


def _pages(content: bytes, head: Mapping[str, Any], policy: MediaPolicy) -> list[Image.Image]:
    limits = DocumentLimits(
        max_bytes=policy.max_bytes,
        max_pages=policy.max_pages,
        max_pixels=policy.max_pixels,
        max_total_pixels=policy.max_total_pixels,
        allow_paths=False,
    )
    return load_pages(content, **head["options"], limits=limits)
