"""Media that want to do harm, as bytes, and a web server of this process that helps them."""

from __future__ import annotations

import io
import struct
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

from tests.serving.conftest import encoded, picture

PNG_HEAD = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *, extra: bytes = b"", rows: bytes = b"\0") -> bytes:
    """A header of this size in front of hardly any pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return PNG_HEAD + chunk(b"IHDR", header) + extra + pixels


def bmp(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


def gif(width: int, height: int) -> bytes:
    image = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02L\x01\0;"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + image


def tiff(width: int, height: int) -> bytes:
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (278, height), (279, 10)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"


def animated(kind: str) -> bytes:
    frames = [picture(20, 20, seed) for seed in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def pixel_of_exif(orientation: bytes) -> bytes:
    """A small JPEG whose EXIF says this of its orientation."""
    body = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 1) + orientation + b"\0\0\0\0"
    plain = encoded(Image.new("RGB", (40, 40)), "JPEG")
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + plain[2:]


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", b"\0" * 1_000_000)
    return file.getvalue()


def pdf(pages: int = 1, box: str = "0 0 100 100", kids: str | None = None, count: int | None = None) -> bytes:
    """A PDF written by hand: pages of this box, or whatever the page tree is made to say."""
    numbers = range(3, 3 + pages)
    listed = " ".join(f"{number} 0 R" for number in numbers) if kids is None else kids
    objects = ["<< /Type /Catalog /Pages 2 0 R >>"]
    objects.append(f"<< /Type /Pages /Kids [{listed}] /Count {pages if count is None else count} >>")
    objects += [f"<< /Type /Page /Parent 2 0 R /MediaBox [{box}] >>" for _ in numbers]
    body, places = b"%PDF-1.4\n", []
    for number, text in enumerate(objects, start=1):
        places.append(len(body))
        body += f"{number} 0 obj\n{text}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    end = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
    end += f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF"
    return body + end.encode()


def mp4(*boxes: tuple[bytes, bytes]) -> bytes:
    made = b"".join(struct.pack(">I", len(body) + 8) + kind + body for kind, body in boxes)
    return struct.pack(">I", 16) + b"ftypisom\0\0\0\0" + made


def avi(width: int, height: int) -> bytes:
    head = struct.pack("<14I", 33333, 0, 0, 0, 1, 0, 1, 0, width, height, 0, 0, 0, 0)
    lists = b"LIST" + struct.pack("<I", 12 + len(head)) + b"hdrlavih" + struct.pack("<I", len(head)) + head
    return b"RIFF" + struct.pack("<I", 4 + len(lists)) + b"AVI " + lists


class Trap(BaseHTTPRequestHandler):
    """Answers by the path: redirects, endless bodies, dripping ones; counts who came."""

    hits: list[str]

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self.hits.append(self.path)
        path, _, rest = self.path.partition("?")
        try:
            self._answer(path, rest)
        except OSError:
            return  # the client has heard enough

    def _answer(self, path: str, rest: str) -> None:
        self.send_response(302 if path == "/to" else 404 if path == "/missing" else 200)
        if path == "/to":
            self.send_header("Location", rest)
        if path == "/loop":
            self.send_header("Refresh", "0")
        if path == "/lies":
            self.send_header("Content-Length", str(10**12))
        if path == "/short":
            self.send_header("Content-Length", "100000")
        self.end_headers()
        if path == "/ok":
            self.wfile.write(encoded(picture(20, 20)))
        elif path == "/page":
            self.wfile.write(b"<!doctype html><p>no picture")
        elif path == "/endless":
            while True:
                self.wfile.write(b"\0" * 65536)
        elif path in ("/drip", "/short"):
            for _ in range(100):
                self.wfile.write(b"\x89")
                time.sleep(0.05 if path == "/drip" else 0)


@contextmanager
def trap() -> Iterator[tuple[int, list[str]]]:
    """Its port, and the paths that were asked for."""
    hits: list[str] = []
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), type("Counting", (Trap,), {"hits": hits}))
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield httpd.server_port, hits
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()
