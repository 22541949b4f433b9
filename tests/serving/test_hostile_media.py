"""Media that want to do harm: each is refused with a 4xx, and the server answers the next request."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from internvl import ChatModel
from internvl.serving.app import make_app
from internvl.serving.media import MediaPolicy
from internvl.serving.settings import Settings
from tests.serving import hostile
from tests.serving.conftest import data_url, encoded, error_of, image_part, picture, serving

PHOTO = encoded(picture(20, 20))
LIMITS: dict[str, Any] = {"max_bytes": 2_000_000, "max_pixels": 4_000_000, "max_frames": 16}


class Ask:
    """Sends one medium to a server."""

    def __init__(self, address: str) -> None:
        self.client = httpx.Client(base_url=address, timeout=90)

    def __enter__(self) -> Ask:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def __call__(self, *parts: dict[str, Any]) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": list(parts)}], "max_tokens": 1}
        return self.client.post("/v1/chat/completions", json=body)

    def image(self, url: str) -> httpx.Response:
        return self(image_part(url))


@pytest.fixture(scope="module")
def web() -> Iterator[tuple[int, list[str]]]:
    with hostile.trap() as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An allowed folder with ways out of it."""
    top = tmp_path_factory.mktemp("local")
    allowed, beside = top / "allowed", top / "allowed-not"
    for path in (allowed, beside, allowed / "inner"):
        path.mkdir()
    for path in (top / "secret.png", beside / "secret.png", allowed / "inner" / "ok.png", allowed / "ok.png"):
        path.write_bytes(PHOTO)
    (allowed / "link.png").symlink_to(top / "secret.png")
    (allowed / "way").symlink_to(top)
    (allowed / "loop.png").symlink_to(allowed / "loop.png")
    (allowed / "good-link.png").symlink_to(allowed / "ok.png")
    os.mkfifo(allowed / "pipe.png")
    (allowed / "large.png").write_bytes(PHOTO + b"\0" * 3_000_000)
    return allowed


@pytest.fixture(scope="module")
def closed(model: ChatModel) -> Iterator[Ask]:
    """As a server is by default, with smaller limits."""
    policy = MediaPolicy(**LIMITS, max_media=8, max_total_pixels=6_000_000)
    with (
        serving(
            make_app(model, Settings(media=policy, max_body_bytes=4_000_000, media_workers=1))
        ) as address,
        Ask(address) as ask,
    ):
        yield ask


@pytest.fixture(scope="module")
def opened(model: ChatModel, web: tuple[int, list[str]], folder: Path) -> Iterator[Ask]:
    """Every public host, this machine's test server by its address, and a folder."""
    policy = MediaPolicy(
        **LIMITS,
        seconds=1.0,
        allowed_domains=(f"127.0.0.1:{web[0]}",),
        allow_private_hosts=True,
        allowed_local_path=folder,
    )
    with serving(make_app(model, Settings(media=policy, media_workers=1))) as address, Ask(address) as ask:
        yield ask


@pytest.fixture(scope="module")
def public(model: ChatModel, web: tuple[int, list[str]]) -> Iterator[Ask]:
    """Every host, on the test server's port too, but public addresses only."""
    policy = MediaPolicy(**LIMITS, allowed_domains=("*", f"*:{web[0]}"))
    with serving(make_app(model, Settings(media=policy, media_workers=1))) as address, Ask(address) as ask:
        yield ask


ADDRESSES = [
    "http://127.0.0.1/x", "http://localhost/x", "http://[::1]/x", "http://0.0.0.0/x", "http://2130706433/x",
    "http://0x7f000001/x", "http://0177.0.0.1/x", "http://127.1/x", "http://[::ffff:127.0.0.1]/x",
    "http://169.254.169.254/latest/meta-data", "https://example.com/a.png", "HTTP://EXAMPLE.COM/a.png",
    "http://user:pass@example.com/a.png", "http://example.com:22/", "http://[broken/x", "http:///x",
    "http://example.com:99999/x", "http:\\\\127.0.0.1\\x",
]  # fmt: skip
SCHEMES = [
    "file:///etc/passwd", "FILE:///etc/passwd", "file://localhost/etc/passwd", "/etc/passwd",
    "../../etc/passwd", "photo.jpg", "ftp://example.com/a", "gopher://127.0.0.1:6379/_x",
    "javascript:alert(1)", "blob:x", "", "concat:/etc/passwd", "\\\\server\\share\\a.png", "data:,",
    "data:image/png;base64", "data:image/png;base64,@@@@", "data:image/png;base64,é", "file-../../etc/passwd",
]  # fmt: skip


@pytest.mark.parametrize("url", ADDRESSES + SCHEMES)
def test_nothing_is_read_from_anywhere_by_default(closed: Ask, url: str) -> None:
    status = 404 if url.startswith("file-") else 400
    error = error_of(closed.image(url), status)
    assert error["param"] == "messages[0].content[0].image_url"
    assert error["code"] in {
        "media_address", "media_scheme", "media_path", "media_data_url", "media_empty", "file_not_found",
    }  # fmt: skip


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433", "0x7f000001", "0177.0.0.1", "127.1",
     "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::]", "127.0.0.1.", "①②⑦.⓪.⓪.①"],
)  # fmt: skip
def test_no_way_of_writing_this_machine_is_public(public: Ask, web: tuple[int, list[str]], host: str) -> None:
    port, hits = web
    before = len(hits)
    error = error_of(public.image(f"http://{host}:{port}/ok"), 400)
    assert error["code"] in {"media_fetch", "media_address"}
    assert len(hits) == before


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/to?http://localhost:{port}/ok", "media_fetch"),
        ("/to?http://127.0.0.1/ok", "media_fetch"),
        ("/to?http://[::1]:{port}/ok", "media_fetch"),
        ("/to?file:///etc/passwd", "media_fetch"),
        ("/to?ftp://127.0.0.1/x", "media_fetch"),
        ("/to?data:image/png;base64,AAAA", "media_fetch"),
        ("/to?/to?/to?/to?/to?/to?/ok", "media_fetch"),
        ("/missing", "media_fetch"),
        ("/lies", "media_fetch"),
        ("/short", "media_fetch"),
        ("/endless", "media_fetch"),
        ("/drip", "media_fetch"),
        ("/page", "invalid_image"),
    ],
)
def test_what_a_web_server_can_do(opened: Ask, web: tuple[int, list[str]], path: str, code: str) -> None:
    port, hits = web
    before = hits.count("/ok")
    error = error_of(opened.image(f"http://127.0.0.1:{port}{path.format(port=port)}"), 400)
    assert error["code"] == code
    assert "Errno" not in error["message"]
    assert hits.count("/ok") == before


def test_an_allowed_address_is_read(opened: Ask, web: tuple[int, list[str]]) -> None:
    for path in ("/ok", "/to?/ok"):
        answer = opened.image(f"http://127.0.0.1:{web[0]}{path}")
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "%2e%2e/secret.png", "../allowed-not/secret.png", "link.png", "way/secret.png",
     "loop.png", "pipe.png", "inner", "", "missing.png", "%00ok.png", "ok.png?x=1", "large.png"],
)  # fmt: skip
def test_local_files_stay_below_their_folder(opened: Ask, folder: Path, name: str) -> None:
    status = 413 if name == "large.png" else 400
    error = error_of(opened.image(f"file://{folder}/{name}"), status)
    assert error["code"] == ("media_bytes" if status == 413 else "media_path")
    assert "secret" not in error["message"]


@pytest.mark.parametrize("place", ["/dev/zero", "/proc/self/environ", "/etc/passwd", "/"])
def test_local_files_of_the_system_are_closed(opened: Ask, place: str) -> None:
    assert error_of(opened.image(f"file://{place}"), 400)["code"] == "media_path"


@pytest.mark.parametrize("name", ["ok.png", "inner/ok.png", "inner/../ok.png", "good-link.png"])
def test_local_files_below_the_folder_are_read(opened: Ask, folder: Path, name: str) -> None:
    assert opened.image(f"file://{folder}/{name}").status_code == 200


TEXT_BOMB = hostile.chunk(b"zTXt", b"k\0\0" + zlib.compress(b"\0" * 80_000_000))
PROFILE_BOMB = hostile.chunk(b"iCCP", b"k\0\0" + zlib.compress(b"\0" * 80_000_000))
PICTURES = {
    "junk": b"junk",
    "zeros": b"\0" * 1000,
    "a PNG cut off": encoded(picture(200, 200))[:2000],
    "a JPEG cut off": encoded(picture(200, 200), "JPEG")[:500],
    "only a head": hostile.PNG_HEAD,
    "a PNG bomb": hostile.png(50_000, 50_000),
    "the largest PNG": hostile.png(2**31 - 1, 2**31 - 1),
    "a PNG without pixels": hostile.png(0, 0),
    "a BMP bomb": hostile.bmp(60_000, 60_000),
    "a BMP upside down": hostile.bmp(60_000, -60_000),
    "a GIF bomb": hostile.gif(65_535, 65_535),
    "a TIFF bomb": hostile.tiff(60_000, 60_000),
    "a PPM bomb": b"P6 99999 99999 255\n" + b"\0" * 100,
    "a line of a million": hostile.png(1_000_000, 1),
    "a column of a million": hostile.png(1, 1_000_000),
    "a long strip": encoded(picture(4000, 2)),
    "text that unpacks": hostile.png(20, 20, extra=TEXT_BOMB),
    "a profile that unpacks": hostile.png(20, 20, extra=PROFILE_BOMB),
    "more pixels than announced": hostile.png(20, 20, rows=b"\0"),
    "an animated GIF": hostile.animated("GIF"),
    "an animated PNG": hostile.animated("PNG"),
    "an animated WebP": hostile.animated("WEBP"),
    "a TIFF of pages": hostile.animated("TIFF"),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "XML with entities": b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>",
    "HTML": b"<html><script>alert(1)</script></html>",
    "PostScript": b"%!PS\n(/etc/passwd) (r) file",
    "a PDF": hostile.pdf(),
    "a ZIP bomb": hostile.zipped(),
    "GIF and script at once": b"GIF89a/*\0*/=1;alert(1)",
    "PNG and ZIP at once": hostile.PNG_HEAD + hostile.zipped(),
    "JPEG and PHP at once": b"\xff\xd8\xff\xe0<?php system('id'); ?>",
    "a program": b"\x7fELF" + b"\0" * 200,
    "a pickle": b"cposix\nsystem\n(S'id'\ntR.",
}  # fmt: skip


@pytest.mark.parametrize("content", PICTURES.values(), ids=PICTURES.keys())
def test_pictures(closed: Ask, content: bytes) -> None:
    error = error_of(closed(image_part(content)), 400)
    assert error["code"] == "invalid_image"


EXIF = {
    "of another type": hostile.pixel_of_exif(b"\x12\x01\x02\0\xff\xff\xff\xff\0\0\0\0"),
    "that points outside": hostile.pixel_of_exif(b"\x12\x01\x04\0\xff\xff\xff\x7f\xff\xff\xff\xff"),
    "that points at itself": hostile.pixel_of_exif(b"\x69\x87\x04\0\x01\0\0\0\x08\0\0\0"),
}


@pytest.mark.parametrize("content", EXIF.values(), ids=EXIF.keys())
def test_metadata_that_lie_change_nothing(closed: Ask, content: bytes) -> None:
    assert closed(image_part(content)).json()["usage"]["images"][0]["width"] == 40


VIDEOS = {
    "junk": b"junk",
    "a playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    "a list of files": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "a session description": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5000 RTP/AVP 96\n",
    "a manifest": b"<?xml version='1.0'?><MPD><BaseURL>file:///etc/passwd</BaseURL></MPD>",
    "only a head": hostile.mp4(),
    "boxes without end": hostile.mp4((b"moov", b"\xff" * 64)),
    "a box larger than all": hostile.mp4() + b"\xff\xff\xff\xffmdat",
    "an AVI bomb": hostile.avi(60_000, 60_000),
    "matroska cut off": b"\x1aE\xdf\xa3\x01\0\0\0\0\0\0\x1f",
    "a picture": encoded(picture(20, 20)),
    "text": b"WEBVTT\n\n00:00.000 --> 00:01.000\nhi\n",
}


@pytest.mark.parametrize("content", VIDEOS.values(), ids=VIDEOS.keys())
def test_videos(closed: Ask, content: bytes) -> None:
    video = {"type": "video_url", "video_url": {"url": data_url(content, "video/mp4")}}
    assert error_of(closed(video), 400)["code"] == "invalid_video"


def test_more_frames_than_allowed(closed: Ask) -> None:
    frames = [picture(10, 10, seed) for seed in range(3)]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    video = {"type": "video_url", "video_url": {"url": data_url(gif), "num_segments": 200}}
    assert error_of(closed(video), 400)["code"] == "invalid_video"


DOCUMENTS: dict[str, tuple[bytes, dict[str, Any]]] = {
    "only a head": (b"%PDF-1.7\n", {}),
    "cut off": (hostile.pdf()[:150], {}),
    "no pages": (hostile.pdf(0), {}),
    "pages that contain themselves": (hostile.pdf(1, kids="2 0 R"), {}),
    "a page as large as a house": (hostile.pdf(box="0 0 200000 200000"), {}),
    "a page without size": (hostile.pdf(box="0 0 0 0"), {"dpi": 2400.0, "pages": [2]}),
    "a page that is not there": (hostile.pdf(), {"pages": [2]}),
    "too many pages": (hostile.pdf(100), {}),
    "the same page too often": (hostile.pdf(), {"pages": [1] * 100}),
    "more dots than allowed": (hostile.pdf(box="0 0 600 800"), {"dpi": 2400.0}),
    "PDF and junk at once": (b"GIF89a%PDF-1.4\n" + b"\xff" * 2000, {}),
}


@pytest.mark.parametrize(("content", "fields"), DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_documents(closed: Ask, content: bytes, fields: dict[str, Any]) -> None:
    part = {"type": "file", "file": {"file_data": data_url(content, "application/pdf"), **fields}}
    assert error_of(closed(part), 400)["code"] == "invalid_document"


def test_counts_and_sizes_of_a_whole_request(closed: Ask) -> None:
    assert error_of(closed(*[image_part(PHOTO)] * 9), 400)["code"] == "media_count"
    large = encoded(picture(1900, 1900), "JPEG", quality=1)
    assert error_of(closed(image_part(large), image_part(large)), 400)["code"] == "media_pixels"
    assert error_of(closed(image_part(PHOTO + b"\0" * 2_500_000)), 413)["code"] == "media_bytes"
    assert error_of(closed.image("x" * 5_000_000), 413)["code"] == "body_too_large"


def test_after_all_of_it_a_picture_is_answered(closed: Ask) -> None:
    assert closed(image_part(PHOTO)).status_code == 200
