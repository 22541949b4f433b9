"""PDF pages as pictures; the PDFs are written here, byte by byte."""

from __future__ import annotations

import hashlib
import io
import random
import sys
import threading

import numpy as np
import pytest

from internvl.errors import DocumentError
from internvl.processing.document import DocumentLimits, load_pages


def make_pdf(
    colours=((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    size=(72, 36),
    extra: dict[int, bytes] | None = None,
    trailer=b"",
) -> bytes:
    """One page a colour; the lower left quarter of each page is filled with it."""
    kids = " ".join(f"{3 + 2 * k} 0 R" for k in range(len(colours)))
    objects = {
        1: b"<< /Type /Catalog /Pages 2 0 R >>",
        2: f"<< /Type /Pages /Count {len(colours)} /Kids [{kids}] >>".encode(),
    }
    for k, colour in enumerate(colours):
        drawing = f"{colour[0]} {colour[1]} {colour[2]} rg 0 0 {size[0] / 2} {size[1] / 2} re f".encode()
        box = f"/MediaBox [0 0 {size[0]} {size[1]}]"
        objects[3 + 2 * k] = f"<< /Type /Page /Parent 2 0 R {box} /Contents {4 + 2 * k} 0 R >>".encode()
        objects[4 + 2 * k] = b"<< /Length %d >> stream\n%s\nendstream" % (len(drawing), drawing)
    objects |= extra or {}
    body, offsets = b"%PDF-1.4\n", []
    for number in sorted(objects):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, objects[number])
    table = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    table += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    end = b"trailer << /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF" % (
        len(objects) + 1,
        trailer,
        len(body),
    )
    return body + table + end


PADDING = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")


def rc4(key: bytes, data: bytes) -> bytes:
    state, j = list(range(256)), 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    out, i, j = bytearray(), 0, 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)


def make_encrypted_pdf(password: bytes) -> bytes:
    """An empty page under the oldest standard handler (40-bit RC4)."""
    padded, identity = (password + PADDING)[:32], b"0123456789abcdef"
    owner = rc4(hashlib.md5(padded).digest()[:5], padded)
    key = hashlib.md5(padded + owner + (0xFFFFFFFC).to_bytes(4, "little") + identity).digest()[:5]
    user = rc4(key, PADDING)
    handler = f"<< /Filter /Standard /V 1 /R 2 /O <{owner.hex()}> /U <{user.hex()}> /P -4 >>".encode()
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 72 36] >>"
    trailer = f"/Encrypt 5 0 R /ID [<{identity.hex()}> <{identity.hex()}>]".encode()
    return make_pdf(colours=((0, 0, 0),), extra={3: page, 4: b"null", 5: handler}, trailer=trailer)


def test_all_pages_in_order():
    pages = load_pages(make_pdf(), dpi=72)
    assert [page.size for page in pages] == [(72, 36)] * 3
    assert all(page.mode == "RGB" for page in pages)
    assert [page.getpixel((10, 30)) for page in pages] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert all(page.getpixel((60, 5)) == (255, 255, 255) for page in pages)


def test_chosen_pages_count_from_one():
    pages = load_pages(make_pdf(), [3, 1, 3], dpi=72)
    assert [page.getpixel((10, 30)) for page in pages] == [(0, 0, 255), (255, 0, 0), (0, 0, 255)]


@pytest.mark.parametrize(
    ("dpi", "size"), [(72, (72, 36)), (144, (144, 72)), (300, (300, 150)), (36, (36, 18))]
)
def test_resolution(dpi, size):
    assert load_pages(make_pdf(), [1], dpi=dpi)[0].size == size


def test_a4_at_the_default_resolution():
    assert load_pages(make_pdf(size=(595, 842)), [1])[0].size == (1190, 1684)


def test_pages_outlive_the_document():
    pages = load_pages(make_pdf(), dpi=72)
    copies = [np.asarray(page).copy() for page in pages]
    load_pages(make_pdf(colours=((0, 0, 0),) * 3), dpi=72)
    for page, copy in zip(pages, copies, strict=True):
        np.testing.assert_array_equal(np.asarray(page), copy)


def test_every_source(tmp_path):
    content = make_pdf()
    path = tmp_path / "a.pdf"
    path.write_bytes(content)
    for source in (path, str(path), content, bytearray(content), io.BytesIO(content)):
        assert len(load_pages(source, dpi=10)) == 3


@pytest.mark.parametrize(
    ("limits", "options", "message"),
    [
        (DocumentLimits(max_bytes=99), {}, "limit is max_bytes=99"),
        (DocumentLimits(max_pages=2), {}, r"3 pages of .* max_pages=2; choose some"),
        (DocumentLimits(max_pixels=1000), {"dpi": 72}, r"page 1 of .*72 x 36 points.*max_pixels=1000"),
        (DocumentLimits(max_total_pixels=5000), {"dpi": 72}, r"3 pages of .* max_total_pixels=5000"),
        (None, {"pages": [0]}, r"has pages 1\.\.3, not 0"),
        (None, {"pages": [1, 4, 9]}, r"has pages 1\.\.3, not 4, 9"),
        (None, {"pages": [1.5]}, r"has pages 1\.\.3, not 1.5"),
        (None, {"pages": []}, "none is asked for"),
        (None, {"pages": [1.0]}, r"has pages 1\.\.3, not 1.0"),
        (None, {"pages": ["a"]}, r"has pages 1\.\.3, not a"),
        (None, {"pages": 2}, "must be a list of numbers, counted from 1, not 2"),
        (None, {"password": 5}, "a password must be a string, not int"),
        (None, {"dpi": "144"}, "dpi must lie in 1..2400, not '144'"),
        (None, {"dpi": 0}, "dpi must lie in"),
        (None, {"dpi": float("nan")}, "dpi must lie in"),
    ],
)
def test_limits_and_wrong_requests(limits, options, message):
    with pytest.raises(DocumentError, match=message):
        load_pages(make_pdf(), limits=limits, **options)


def test_chosen_pages_of_a_long_document_are_within_the_limit():
    assert len(load_pages(make_pdf(), [2], limits=DocumentLimits(max_pages=1))) == 1


def test_huge_sheets_are_refused_before_rendering():
    with pytest.raises(DocumentError, match="lower dpi"):
        load_pages(make_pdf(size=(14400, 14400)))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "empty"),
        (b"hello", r"\(5 bytes\) is no PDF"),
        (b"%PDF-1.4\n", "is no PDF, or is damaged"),
        ("/nowhere/a.pdf", "no such file"),
        ("https://example.org/a.pdf", "allow_urls"),
        (make_pdf(colours=()), "has 0 pages|no PDF"),
    ],
)
def test_no_documents(source, message):
    with pytest.raises(DocumentError, match=message):
        load_pages(source)


def test_encrypted_documents_need_their_password():
    content = make_encrypted_pdf(b"secret")
    for password in (None, "wrong"):
        with pytest.raises(DocumentError, match="encrypted: hand over its password"):
            load_pages(content, password=password)
    assert load_pages(content, password="secret", dpi=72)[0].size == (72, 36)


def test_damaged_documents_never_raise_anything_else():
    content, generator, outcomes = make_pdf(), random.Random(0), set()
    for _ in range(200):
        damaged = bytearray(content[: generator.choice((len(content), generator.randrange(len(content))))])
        for _ in range(generator.choice((1, 5, 40))):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        try:
            pages = load_pages(bytes(damaged), dpi=20)
        except DocumentError:
            outcomes.add("refused")
        else:
            assert all(page.mode == "RGB" for page in pages)
            outcomes.add("read")
    assert outcomes == {"refused", "read"}


def test_threads_take_turns():
    content, sizes = make_pdf(), []
    threads = [
        threading.Thread(target=lambda: sizes.extend(page.size for page in load_pages(content, dpi=72)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes == [(72, 36)] * 24


def test_without_pypdfium2_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(DocumentError, match=r"pip install 'internvl\[pdf\]'"):
        load_pages(make_pdf())
