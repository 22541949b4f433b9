"""What media of a request may be read: the rules, and where an address may lead.

Closed unless opened: web hosts are named one by one, local files lie below one folder. Everything here is
decided before a byte is read. Knows no HTTP and no messages; `decoding` does the reading.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from internvl.errors import RequestError
from internvl.processing.source import decoded

Kind = Literal["image", "video", "document", "file"]
"""A "file" is what its content says: a PDF, else a picture."""

WEB_PORTS = (80, 443)


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaPolicy:
    """Limits of one request. Sizes are of one medium, counts of the whole request.

    `allowed_domains` are hosts, `host:port` for ports other than 80 and 443, `.example.org` for all hosts
    below; `*` is any public host. Private addresses stay closed unless `allow_private_hosts`. `seconds` are
    for fetching and decoding one medium. `max_aspect` is the longer side over the shorter one.
    """

    allowed_domains: tuple[str, ...] = ()
    allowed_local_path: Path | None = None
    allow_private_hosts: bool = False
    max_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000
    max_side: int = 65_500
    max_aspect: int = 200
    max_total_pixels: int = 120_000_000
    max_media: int = 64
    max_frames: int = 128
    max_pages: int = 64
    max_video_seconds: float = 3600.0
    seconds: float = 20.0

    def allows(self, host: str, port: int) -> bool:
        """Whether this host may be asked on this port."""
        return any(_matches(entry.lower(), host, port) for entry in self.allowed_domains)


def _matches(entry: str, host: str, port: int) -> bool:
    name, _, wanted = entry.rpartition(":")
    if not (name and wanted.isdigit()):
        name, wanted = entry, ""
    name = name.strip("[]")
    if port not in ((int(wanted),) if wanted else WEB_PORTS):
        return False
    return name in ("*", host) or (name.startswith(".") and host.endswith(name))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Medium:
    """One thing to read: bytes at hand, a web address, or a path that may be read."""

    kind: Kind
    content: bytes | None = None
    url: str | None = None
    path: Path | None = None
    options: tuple[tuple[str, Any], ...] = ()
    """Of a video or document: which frames or pages."""
    param: str | None = None
    """The field of the request it came from."""


def find_medium(
    kind: Kind, address: str, policy: MediaPolicy, *, options: dict[str, Any] | None = None, param: str | None
) -> Medium:
    """What an address of a request names. Raises RequestError with a code for whatever may not be read."""
    chosen = tuple((options or {}).items())
    scheme = address[:8].partition(":")[0].lower() if ":" in address[:8] else ""
    if scheme == "data":
        return Medium(kind=kind, content=_from_data_url(address, policy, param), options=chosen, param=param)
    if scheme == "file":
        return Medium(kind=kind, path=_local_path(address, policy, param), options=chosen, param=param)
    if scheme in ("http", "https"):
        _check_host(address, policy, param)
        return Medium(kind=kind, url=address, options=chosen, param=param)
    raise RequestError(
        f"{_short(address)} is no address that is read here: send a data: URL, the id of an uploaded "
        "file, or an http(s) address of a host that the server allows",
        param=param,
        code="media_scheme",
    )


def check_bytes(content: bytes, policy: MediaPolicy, param: str | None) -> bytes:
    """The same bytes, unless there are none or too many."""
    if not content:
        raise RequestError("the medium is empty (0 bytes)", param=param, code="media_empty")
    if len(content) > policy.max_bytes:
        raise _too_large(len(content), policy, param)
    return content


def _from_data_url(address: str, policy: MediaPolicy, param: str | None) -> bytes:
    head, comma, body = address.partition(",")
    if not comma:
        raise RequestError(
            f"{_short(address)} has no comma: a data URL is data:<type>;base64,<content>",
            param=param,
            code="media_data_url",
        )
    if len(body) > 3 * policy.max_bytes + 4:
        raise _too_large(len(body) // 3, policy, param)
    try:
        content = decoded(head, body.encode("utf-8", errors="replace"))  # JSON may hold half surrogate pairs
    except binascii.Error as reason:
        raise RequestError(
            f"{_short(address)} is not valid base64: {reason}", param=param, code="media_data_url"
        ) from reason
    return check_bytes(content, policy, param)


def _local_path(address: str, policy: MediaPolicy, param: str | None) -> Path:
    """The real file behind a file: address, which must lie below the allowed folder after all links."""
    refused = RequestError(
        "local files are closed: send the content, or let the server allow a folder "
        "(--allowed-local-media-path)",
        param=param,
        code="media_path",
    )
    if policy.allowed_local_path is None:
        raise refused
    parts = urlsplit(address)
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise refused
    try:
        path = Path(unquote(parts.path, errors="strict")).resolve(strict=True)
        is_below = path.is_relative_to(policy.allowed_local_path.resolve(strict=True))
        is_plain = path.is_file()
    except (OSError, ValueError, RuntimeError) as reason:
        # A missing file and a forbidden one look alike from outside.
        raise refused from reason
    if not (is_below and is_plain):
        raise refused
    return path


def _check_host(address: str, policy: MediaPolicy, param: str | None) -> None:
    """What can be told without a look-up; `fetch` asks again for every redirect and checks addresses."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as reason:
        raise RequestError(
            f"{_short(address)} is no address: {reason}", param=param, code="media_address"
        ) from reason
    odd = parts.username is not None or "\\" in address or any(ord(letter) <= ord(" ") for letter in address)
    if odd or not host or not policy.allows(host, port):
        known = "none" if not policy.allowed_domains else ", ".join(policy.allowed_domains)
        raise RequestError(
            f"{_short(address)}: the server does not fetch from there (allowed: {known}); send the content "
            "as a data: URL",
            param=param,
            code="media_address",
        )


def _too_large(size: int, policy: MediaPolicy, param: str | None) -> RequestError:
    return RequestError(
        f"the medium has {size} bytes or more, the limit is {policy.max_bytes}",
        status=413,
        param=param,
        code="media_bytes",
    )


def _short(address: str) -> str:
    return repr(address if len(address) <= 100 else f"{address[:60]}... ({len(address)} characters)")
