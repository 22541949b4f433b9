"""Fetching from the web, against a server of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from internvl.errors import ImageError, VideoError
from internvl.processing import fetch as module
from internvl.processing.fetch import fetch
from internvl.processing.image import ImageLimits, load_image

PIXEL = b"P6 1 1 255\n\x01\x02\x03"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Quiet."""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def drip(self, data: bytes, pause: float = 0.02) -> None:
        """One byte at a time, never quiet for long."""
        for index in range(len(data)):
            time.sleep(pause)
            try:
                self.connection.sendall(data[index : index + 1])
            except OSError:
                return

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/ok":
            self.answer(200, PIXEL, Content_Length=str(len(PIXEL)))
        elif path == "/no-length":
            self.answer(200, PIXEL)
        elif path.startswith("/to/"):
            self.answer(302, Location=self.path.partition("?")[2])
        elif path == "/loop":
            self.answer(307, Location="/loop")
        elif path == "/large":
            self.answer(200, Content_Length="999999999")
        elif path == "/endless":
            self.answer(200, b"x" * 300_000)
        elif path == "/short":
            self.answer(200, PIXEL, Content_Length="100")
        elif path == "/slow":
            self.answer(200)
            for _ in range(150):
                time.sleep(0.02)
                try:
                    self.wfile.write(b"x")
                except OSError:
                    return
        elif path == "/drip":
            self.drip(b"HTTP/1.0 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % k for k in range(20)))
        elif path == "/drip-chunks":
            head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            self.drip(head + b"1\r\nx\r\n" * 5 + b"0\r\n\r\n", 0.01)
        elif path == "/silent":
            time.sleep(3)
        elif path == "/caf%C3%A9%20x":
            self.answer(200, b"quoted")
        else:
            self.answer(404)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def get(url: str, *, max_bytes: int = 100_000, timeout: float = 5.0, private: bool = True) -> bytes:
    return fetch(url, max_bytes=max_bytes, timeout=timeout, allow_private_hosts=private, error=ImageError)


@pytest.mark.parametrize("path", ["/ok", "/no-length", "/to/?/ok", "/to/?to/?/ok", "/ok?a=b&c=d"])
def test_content_arrives(server, path):
    assert get(server + path) == PIXEL


def test_paths_are_quoted(server):
    assert get(server + "/café x") == b"quoted"
    assert get(server + "/caf%C3%A9%20x") == b"quoted"


def test_pictures_are_loaded_when_opened_twice_over(server):
    limits = ImageLimits(allow_urls=True, allow_private_hosts=True)
    assert load_image(server + "/ok", limits).getpixel((0, 0)) == (1, 2, 3)
    with pytest.raises(ImageError, match="not a public address"):
        load_image(server + "/ok", ImageLimits(allow_urls=True))
    with pytest.raises(ImageError, match="allow_urls"):
        load_image(server + "/ok")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/missing", "answered 404"),
        ("/large", "has 999999999 bytes, the limit is max_bytes=100000"),
        ("/endless", "more than max_bytes=100000"),
        ("/short", "broke off: 86 bytes are missing"),
        ("/loop", "more than 4 redirects"),
        ("/to/?file:///etc/passwd", "only http and https"),
        ("/to/?ftp://127.0.0.1/x", "only http and https"),
        ("/to/?gopher://x", "only http and https"),
        ("/to/?data:image/png,xx", "only http and https"),
    ],
)
def test_bad_answers(server, path, message):
    with pytest.raises(ImageError, match=message):
        get(server + path)


@pytest.mark.parametrize("path", ["/slow", "/silent", "/drip", "/drip-chunks"])
def test_time_is_limited_in_all(server, path):
    start = time.monotonic()
    with pytest.raises(ImageError, match=r"within 0.2 s"):
        get(server + path, timeout=0.2)
    assert time.monotonic() - start < 1.5


def test_dripping_content_arrives_while_there_is_time(server):
    assert get(server + "/drip-chunks", timeout=30.0) == b"x" * 5


def test_all_addresses_of_a_name_share_the_time(monkeypatch):
    ends = []

    def connect(address, timeout):
        ends.append((address, timeout))
        time.sleep(0.15)
        raise TimeoutError("timed out")

    found = [(0, 0, 0, "", (f"127.0.0.{k}", 80)) for k in range(1, 9)]
    monkeypatch.setattr(module.socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(module.socket, "create_connection", connect)
    with pytest.raises(ImageError, match=r"within 0.2 s"):
        get("http://many.example/x", timeout=0.2)
    assert [address for address, _ in ends] == [("127.0.0.1", 80), ("127.0.0.2", 80)]
    assert ends[1][1] < 0.1


def test_private_addresses_are_refused(server):
    port = server.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost", "0.0.0.0", "[::ffff:127.0.0.1]", "2130706433"):
        with pytest.raises(ImageError, match=r"not a public address|cannot fetch"):
            get(f"http://{host}:{port}/ok", private=False)


def test_a_name_is_looked_up_once_and_what_was_checked_is_connected_to(monkeypatch):
    """A name server that answers with a public address first and with loopback then changes nothing."""
    answers = iter([[(0, 0, 0, "", ("8.8.8.8", 80))], [(0, 0, 0, "", ("127.0.0.1", 80))]])
    asked = []

    def connect(address, timeout):
        asked.append(address)
        raise OSError("no network here")

    monkeypatch.setattr(module.socket, "getaddrinfo", lambda *_, **__: next(answers))
    monkeypatch.setattr(module.socket, "create_connection", connect)
    with pytest.raises(ImageError, match="no network here"):
        get("http://rebinding.example/x", private=False)
    assert asked == [("8.8.8.8", 80)]


def test_nothing_private_is_even_connected_to(monkeypatch):
    found = [(0, 0, 0, "", ("8.8.8.8", 80)), (0, 0, 0, "", ("10.0.0.1", 80))]
    monkeypatch.setattr(module.socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(module.socket, "create_connection", lambda *_, **__: pytest.fail("connected"))
    with pytest.raises(ImageError, match=r"mixed.example is 10.0.0.1, not a public address"):
        get("http://mixed.example/x", private=False)


def test_hosts_and_ports_are_asked_for_at_every_step(server):
    port = int(server.rpartition(":")[2])

    def fetched(path: str, allows: module.Allows) -> bytes:
        return fetch(
            server + path,
            max_bytes=99,
            timeout=5.0,
            allow_private_hosts=True,
            error=ImageError,
            allows=allows,
        )

    assert fetched("/ok", lambda host, at: (host, at) == ("127.0.0.1", port)) == PIXEL
    with pytest.raises(ImageError, match="not one of the hosts"):
        fetched("/ok", lambda *_: False)
    with pytest.raises(ImageError, match="localhost:80 is not one of the hosts"):
        fetched("/to/?http://localhost/ok", lambda host, _: host == "127.0.0.1")


@pytest.mark.parametrize(
    ("address", "is_public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("10.0.0.1", False), ("169.254.169.254", False),
        ("192.168.1.1", False), ("127.0.0.1", False), ("::1", False), ("fe80::1", False),
        ("224.0.0.1", False),
        ("2002:7f00:1::", False), ("2002:808:808::1", True), ("64:ff9b::a00:1", False),
        ("64:ff9b::808:808", True),
        ("2001:0:7f00:1::f5ff:fffe", False), ("ff0e::1", False), ("fc00::1", False),
        ("::ffff:10.0.0.1", False), ("::ffff:8.8.8.8", True), ("0.0.0.0", False), ("100.64.0.1", False),
    ],
)  # fmt: skip
def test_public_addresses(address, is_public):
    assert module._is_public(module.ipaddress.ip_address(address)) == is_public


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/x", "http://127.0.0.1:99999/x", "http://[broken/x", "https://"]
)
def test_no_connection(url):
    with pytest.raises(ImageError, match=r"cannot fetch|only http"):
        get(url)


def test_the_error_is_the_callers(server):
    with pytest.raises(VideoError):
        fetch(server + "/no", max_bytes=9, timeout=5.0, allow_private_hosts=True, error=VideoError)


def test_tls_is_verified(server):
    with pytest.raises(ImageError, match="cannot fetch"):
        get(server.replace("http:", "https:") + "/ok")
