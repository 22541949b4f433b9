"""Whatever names a file - path, bytes, open file, data URL, web address - to its bytes, under limits.

Knows nothing of what the bytes mean. Web addresses are closed unless the limits open them; then
`fetch` guards where they may lead.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import stat
from pathlib import Path
from typing import IO, Protocol, TypeAlias

import numpy as np

from internvl.errors import InputError
from internvl.processing.fetch import fetch

Source: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]


class ReadLimits(Protocol):
    """What may be read; `ImageLimits`, `VideoLimits` and `DocumentLimits` all have these fields."""

    @property
    def max_bytes(self) -> int: ...
    @property
    def allow_paths(self) -> bool: ...
    @property
    def allow_urls(self) -> bool: ...
    @property
    def allow_private_hosts(self) -> bool: ...
    @property
    def url_timeout(self) -> float: ...


def describe(source: object) -> str:
    """How messages name a source: its path, or its kind. Long addresses are shortened."""
    if isinstance(source, os.PathLike):
        return repr(os.fspath(source))
    if isinstance(source, str):
        return repr(source if len(source) <= 200 else f"{source[:80]}... ({len(source)} characters)")
    name = getattr(source, "name", None)
    return repr(name) if isinstance(name, str) else f"<{type(source).__name__}>"


def read_source(source: Source, limits: ReadLimits, error: type[InputError]) -> bytes:
    """The bytes of any source, never more than `limits.max_bytes`; what goes wrong is an `error`."""
    if isinstance(source, bytes | bytearray | memoryview):
        return checked(bytes(source), describe(source), limits, error)
    if isinstance(source, str) and source[:5].lower() == "data:":
        return checked(_decode_data_url(source, limits, error), describe(source), limits, error)
    if is_url(source):
        if not limits.allow_urls:
            raise error(f"web addresses are closed: {describe(source)}; download it, or set allow_urls=True")
        timeout, allow_private = limits.url_timeout, limits.allow_private_hosts
        content = fetch(
            str(source),
            max_bytes=limits.max_bytes,
            timeout=timeout,
            allow_private_hosts=allow_private,
            error=error,
        )
        return checked(content, describe(source), limits, error)
    if isinstance(source, str | os.PathLike):
        path = check_path(source, limits, error)
        return checked(_read_path(path, limits, error), describe(source), limits, error)
    return checked(_read_file(source, limits, error), describe(source), limits, error)


def is_url(source: object) -> bool:
    """Whether this is an http(s) address rather than a path."""
    return isinstance(source, str) and source[:8].lower().startswith(("http://", "https://"))


def is_path(source: object) -> bool:
    """Whether this names a place in the file system, rather than an address or content."""
    if isinstance(source, str):
        return not is_url(source) and source[:5].lower() != "data:"
    return isinstance(source, os.PathLike)


def check_path(source: str | os.PathLike[str], limits: ReadLimits, error: type[InputError]) -> Path:
    """A readable regular file within `max_bytes`, or an `error` that says what it is instead."""
    name, path = describe(source), Path(source)
    if not limits.allow_paths:
        raise error(f"paths are closed here: {name}; hand over the bytes or a data URL")
    try:
        status = path.stat()
    except (OSError, ValueError) as reason:
        raise error(f"no such file: {name} ({reason})") from reason
    if stat.S_ISDIR(status.st_mode):
        raise error(f"{name} is a directory; name one file in it")
    if not stat.S_ISREG(status.st_mode):
        raise error(f"{name} is not a regular file")
    if status.st_size > limits.max_bytes:
        raise error(_over(name, status.st_size, limits))
    return path


def checked(content: bytes, name: str, limits: ReadLimits, error: type[InputError]) -> bytes:
    """The same bytes, unless there are none or too many."""
    if not content:
        raise error(f"{name} is empty (0 bytes)")
    if len(content) > limits.max_bytes:
        raise error(_over(name, len(content), limits))
    return content


def _over(name: str, size: int, limits: ReadLimits) -> str:
    return f"{name} has {size} bytes or more, the limit is max_bytes={limits.max_bytes}"


def _read_path(path: Path, limits: ReadLimits, error: type[InputError]) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limits.max_bytes + 1)
    except OSError as reason:
        raise error(f"cannot read {describe(path)}: {reason}") from reason


def _read_file(source: object, limits: ReadLimits, error: type[InputError]) -> bytes:
    read = getattr(source, "read", None)
    if read is None:
        raise error(f"cannot read from a {type(source).__name__}: hand over a path, bytes or an open file")
    try:
        content = read(limits.max_bytes + 1)
    except (OSError, ValueError, io.UnsupportedOperation) as reason:
        raise error(f"cannot read from {describe(source)}: {reason}") from reason
    if not isinstance(content, bytes):
        raise error(f"{describe(source)} is open as text; open it with mode 'rb'")
    return content


_DIGITS = "0123456789abcdefABCDEF"
_HEX = np.array([int(chr(byte), 16) if chr(byte) in _DIGITS else 255 for byte in range(256)], np.uint8)
"""What each byte is as a hexadecimal digit; 255 for none."""


def unquoted(content: bytes) -> bytes:
    """With the bytes that stand for each `%` and two hexadecimal digits.

    Takes a few times the memory of `content`, whatever it holds; the standard library's takes hundreds of
    times of what is full of `%`.
    """
    if b"%" not in content or len(content) < 3:
        return content
    data = np.frombuffer(content, np.uint8)
    values = _HEX[data]
    is_digit = values < 16
    begins = np.zeros(len(data), bool)
    begins[:-2] = (data[:-2] == ord("%")) & is_digit[1:-1] & is_digit[2:]
    out = data.copy()
    out[begins] = values[1:][begins[:-1]] * 16 + values[2:][begins[:-2]]
    keep = np.ones(len(data), bool)
    keep[1:] &= ~begins[:-1]
    keep[2:] &= ~begins[:-2]
    return out[keep].tobytes()


def decoded(head: str, body: bytes) -> bytes:
    """The content of a data URL, of which `head` stands before the comma and `body` behind it.

    Raises binascii.Error for what is not base64 where `head` says that it is.
    """
    content = unquoted(body)
    if not head.lower().endswith(";base64"):
        return content
    content = content.translate(None, b" \t\n\r\v\f")  # no list of the pieces, which may be millions
    return base64.b64decode(content + b"=" * (-len(content) % 4), validate=True)


def _decode_data_url(url: str, limits: ReadLimits, error: type[InputError]) -> bytes:
    head, comma, body = url.partition(",")
    if not comma:
        raise error(f"{describe(url)} has no comma: a data URL is data:<type>;base64,<content>")
    if len(body) > 3 * limits.max_bytes + 4:
        raise error(_over(describe(url), len(body) // 3, limits))
    try:
        return decoded(head, body.encode())
    except UnicodeEncodeError as reason:
        raise error(f"{describe(url)} holds characters that are no text: {reason}") from reason
    except binascii.Error as reason:
        raise error(f"{describe(url)} is not valid base64: {reason}") from reason
