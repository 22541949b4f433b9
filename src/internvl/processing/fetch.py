"""One file from the web, for callers who opened that door.

Guards, at the first address and after every redirect: http and https only; host and port are those the
caller allows; a name is looked up once, what it resolves to must be public, and that very address is
connected to. A cap on bytes, and one deadline for everything from connecting to the last byte. Proxies of the
environment are not used, because the address check would then see the proxy. Knows nothing of what is
fetched.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from functools import partial
from typing import Any, cast
from urllib.parse import quote, urljoin, urlsplit

from internvl.errors import InputError

MAX_REDIRECTS = 4
REDIRECTS = frozenset({301, 302, 303, 307, 308})
CHUNK = 1 << 16
NAT64 = ipaddress.ip_network("64:ff9b::/96")
HEADERS: Mapping[str, str] = {"User-Agent": "internvl", "Accept-Encoding": "identity"}

Allows = Callable[[str, int], bool]
"""Whether a host (lower case, a name or an address) may be asked on a port."""


def fetch(
    url: str,
    *,
    max_bytes: int,
    timeout: float,
    allow_private_hosts: bool,
    error: type[InputError],
    allows: Allows | None = None,
) -> bytes:
    """GET `url` within `timeout` seconds in all; all but a complete 200 is an `error`. None allows any host.

    Only the system's own look-up of the name may take longer: nothing can interrupt it.
    """
    deadline = time.monotonic() + timeout
    for _ in range(MAX_REDIRECTS + 1):
        try:
            with closing(_connect(url, deadline, allow_private_hosts, allows, error)) as connection:
                connection.request("GET", _target(url), headers=HEADERS)
                response = connection.getresponse()
                location = response.getheader("Location")
                if response.status not in REDIRECTS or location is None:
                    return _read(response, url, max_bytes, error)
                url = urljoin(url, location)
        except InputError:
            raise
        except (OSError, ValueError, http.client.HTTPException) as reason:
            raise error(f"cannot fetch {url[:200]!r} within {timeout:g} s: {reason!r}") from reason
    raise error(f"more than {MAX_REDIRECTS} redirects, the last one to {url[:200]!r}")


def _connect(
    url: str, deadline: float, allow_private_hosts: bool, allows: Allows | None, error: type[InputError]
) -> http.client.HTTPConnection:
    """An open connection to an address that was checked."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise error(f"only http and https addresses are fetched, not {url[:200]!r}")
    is_secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if is_secure else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port or kind.default_port)
    if allows is not None and not allows(parts.hostname, connection.port):
        raise error(f"{parts.hostname}:{connection.port} is not one of the hosts that may be asked")
    peer = _dial(connection.host, connection.port, deadline, allow_private_hosts, error)
    with ExitStack() as undo:
        undo.callback(peer.close)
        peer.settimeout(_seconds_left(deadline))
        if is_secure:
            peer = ssl.create_default_context().wrap_socket(peer, server_hostname=parts.hostname)
            undo.callback(peer.close)
            peer.settimeout(_seconds_left(deadline))
        undo.pop_all()
    connection.sock = peer
    connection.response_class = cast(Any, partial(_Response, deadline=deadline))
    return connection


def _dial(
    host: str, port: int, deadline: float, allow_private_hosts: bool, error: type[InputError]
) -> socket.socket:
    """A connection to the first address of `host` that answers; all of them share the time.

    The name is not looked up again between check and connection. A name of which one address is private is
    refused altogether: nobody's public pictures lie there.
    """
    addresses = [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in addresses:
        if not (allow_private_hosts or _is_public(ipaddress.ip_address(address.partition("%")[0]))):
            raise error(f"{host} is {address}, not a public address; allow it with allow_private_hosts=True")
    failure = OSError(f"{host} has no address")
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout=_seconds_left(deadline))
        except OSError as reason:
            failure = reason
    raise failure


def _seconds_left(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("the time is over")
    return seconds


class _Response(http.client.HTTPResponse):
    """A response whose header and body must come before the deadline."""

    def __init__(self, sock: socket.socket, *arguments: Any, deadline: float, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp = io.BufferedReader(_Timed(self.fp.detach(), sock, deadline))


class _Timed(io.RawIOBase):
    """What comes from a socket. Its own timeout is for each piece, so it is set anew: bytes may drip in."""

    def __init__(self, raw: Any, sock: socket.socket, deadline: float) -> None:
        self._raw, self._sock, self._deadline = raw, sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(_seconds_left(self._deadline))
        return cast(int | None, self._raw.readinto(buffer))

    def close(self) -> None:
        self._raw.close()
        super().close()


def _target(url: str) -> str:
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return quote(target, safe="/%?&=:;,+!$'()*@~[]")


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """IPv6 addresses that carry an IPv4 one (mapped, 6to4, Teredo, NAT64) are as public as that is."""
    if address.is_multicast or not address.is_global:
        mapped = getattr(address, "ipv4_mapped", None)
        return mapped is not None and _is_public(mapped)
    return all(_is_public(inner) for inner in _carried(address))


def _carried(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found = [address.sixtofour, *(address.teredo or ())]
    if address in NAT64:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [inner for inner in found if inner is not None]


def _read(response: http.client.HTTPResponse, url: str, max_bytes: int, error: type[InputError]) -> bytes:
    if response.status != 200:
        raise error(f"{url[:200]!r} answered {response.status} {response.reason}")
    if response.length is not None and response.length > max_bytes:
        raise error(f"{url[:200]!r} has {response.length} bytes, the limit is max_bytes={max_bytes}")
    content = bytearray()
    while chunk := response.read1(CHUNK):
        content += chunk
        if len(content) > max_bytes:
            raise error(f"{url[:200]!r} has more than max_bytes={max_bytes}")
    if response.length:
        raise error(f"{url[:200]!r} broke off: {response.length} bytes are missing")
    return bytes(content)
