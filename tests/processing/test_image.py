"""Reading pictures: every source, every limit, every kind of damage."""

from __future__ import annotations

import base64
import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from internvl.errors import ImageError
from internvl.processing.image import ImageLimits, load_image


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def png(pixels) -> bytes:
    return encode(Image.fromarray(pixels))


EMPTY_IDAT = b"\0\0\0\x05IDAT"


def png_header(width: int, height: int) -> bytes:
    """A PNG of this size whose pixels are missing: a few bytes that claim much."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + EMPTY_IDAT
    )


def sources(png: bytes, directory: Path) -> dict[str, object]:
    path = directory / "picture.png"
    path.write_bytes(png)
    encoded = base64.b64encode(png).decode()
    return {
        "path": path,
        "string": str(path),
        "bytes": png,
        "bytearray": bytearray(png),
        "memoryview": memoryview(png),
        "file": io.BytesIO(png),
        "PIL": Image.open(io.BytesIO(png)),
        "data URL": f"data:image/png;base64,{encoded}",
        "data URL without padding": f"DATA:image/png;base64,{encoded.rstrip('=')}",
        "data URL with line ends": f"data:;base64,{encoded[:40]}\n{encoded[40:]}",
        "percent-encoded data URL": "data:image/png," + "".join(f"%{byte:02x}" for byte in png),
    }


def test_every_source_gives_the_same_pixels(png, pixels, tmp_path):
    for name, source in sources(png, tmp_path).items():
        image = load_image(source)
        assert image.mode == "RGB", name
        np.testing.assert_array_equal(np.asarray(image), pixels, err_msg=name)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP", "JPEG", "AVIF"])
def test_every_format_equals_pillows_own_reading(kind, pixels):
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encode(Image.fromarray(pixels), kind, **options)
    expected = Image.open(io.BytesIO(content)).convert("RGB")
    np.testing.assert_array_equal(np.asarray(load_image(content)), np.asarray(expected))


def test_files_are_read_from_where_they_stand(png):
    file = io.BytesIO(b"skipped" + png)
    file.seek(7)
    assert load_image(file).size == (20, 12)


def test_an_rgb_picture_is_returned_itself(pixels):
    image = Image.fromarray(pixels)
    assert load_image(image) is image


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: d / "absent.png", r"no such file: '.*absent.png'"),
        (lambda d: d, "is a directory"),
        (lambda d: str(d), "is a directory"),
        (lambda d: "nul\0byte", "no such file"),
        (lambda d: "x" * 5000, r"no such file: 'x+\.\.\. \(5000 characters\)'"),
        (lambda d: "/dev/zero", "not a regular file"),
        (lambda d: b"", "empty"),
        (lambda d: io.BytesIO(), "empty"),
        (lambda d: io.StringIO("text"), "open it with mode 'rb'"),
        (lambda d: 7, "from a int"),
        (lambda d: None, "from a NoneType"),
        (lambda d: torch.zeros(3, 4, 4), "from a Tensor"),
        (lambda d: "data:image/png;base64", "no comma"),
        (lambda d: "data:image/png;base64,a", "not valid base64"),
        (lambda d: "data:image/png;base64,!!!!", "not valid base64"),
        (lambda d: "data:image/png;base64,\ud800", "characters that are no text"),
        (lambda d: "data:image/png,\ud800", "characters that are no text"),
        (lambda d: "http://example.org/a.png", "set allow_urls=True"),
        (lambda d: "HTTPS://example.org/a.png", "set allow_urls=True"),
    ],
)
def test_unreadable_sources(make, message, tmp_path):
    with pytest.raises(ImageError, match=message):
        load_image(make(tmp_path))


def test_closed_files_and_closed_pictures(png):
    file = io.BytesIO(png)
    file.close()
    with pytest.raises(ImageError, match="closed"):
        load_image(file)
    image = Image.open(io.BytesIO(png))
    image.close()
    with pytest.raises(ImageError, match="damaged"):
        load_image(image)


def test_paths_can_be_closed(png, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png)
    with pytest.raises(ImageError, match="paths are closed"):
        load_image(path, ImageLimits(allow_paths=False))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"%PDF-1.7 ...", "a PDF: hand it over as a document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC photo: convert"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "a video"),
        (b"\xef\xbb\xbf <svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\n<!DOCTYPE html><html></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"just some text", "no picture"),
        (b"\xff\xd8\xff", "no picture"),
    ],
)
def test_other_files_are_named(content, message):
    with pytest.raises(ImageError, match=message) as caught:
        load_image(content)
    assert f"({len(content)} bytes)" in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "PPM", "GIF", "WEBP"])
def test_truncated_files_name_file_and_bytes(kind, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    content = encode(Image.fromarray(noise), kind)
    path = tmp_path / f"cut.{kind.lower()}"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=rf"cut\.{kind.lower()}.*{len(content) // 2} bytes"):
        load_image(path)


def test_bytes_are_limited_before_reading(png, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png)
    limits = ImageLimits(max_bytes=len(png) - 1)
    sparse = tmp_path / "sparse.png"
    with sparse.open("wb") as file:
        file.truncate(1 << 40)
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    for source in (path, png, io.BytesIO(png), url, sparse):
        with pytest.raises(ImageError, match=f"limit is max_bytes={len(png) - 1}"):
            load_image(source, limits)
    assert load_image(path, ImageLimits(max_bytes=len(png))).size == (20, 12)


def test_pixels_are_limited_from_the_header_alone(pixels, monkeypatch):
    limits = ImageLimits(max_pixels=239)
    for source in (png_header(20, 12), Image.fromarray(pixels), pixels):
        with pytest.raises(ImageError, match="20 x 12 = 240 pixels, the limit is max_pixels=239"):
            load_image(source, limits)
    # Pillow's own limit is the user's; ours holds without it.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ImageError, match="60000 x 60000 = 3600000000 pixels"):
        load_image(png_header(60_000, 60_000))


@pytest.mark.parametrize("size", [(10_000, 9_500), (60_000, 60_000), (2**31 - 1, 1)])
def test_bombs_are_refused(size):
    with pytest.raises(ImageError, match="max_pixels=89478485"):
        load_image(png_header(*size))


def test_zip_bomb_in_metadata_is_refused():
    body = b"zTXt" + b"key\0\0" + zlib.compress(b"\0" * (100 << 20), 9)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    content = png_header(4, 4).removesuffix(EMPTY_IDAT) + chunk
    assert len(content) < 200_000
    with pytest.raises(ImageError, match="too large"):
        load_image(content)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "PPM", "GIF", "WEBP", "AVIF"])
def test_damaged_files_never_raise_anything_else(kind, pixels):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode(
        Image.fromarray(pixels), kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP") else {})
    )
    generator, refused = random.Random(kind), 0
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(generator.choice((1, 3, 20))):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        try:
            image = load_image(bytes(damaged), ImageLimits(max_pixels=1_000_000))
        except ImageError:
            refused += 1
        else:
            assert image.mode == "RGB"
    assert refused > 0
