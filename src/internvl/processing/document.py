"""Pages of a PDF as pictures (pypdfium2, extra "pdf"), within limits checked before rendering.

Knows no tiles and no prompts. PDFium is not made for threads, so one document is open at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import Any

from PIL import Image

from internvl.errors import DocumentError
from internvl.processing.source import Source, describe, read_source

POINTS_PER_INCH = 72
_PDFIUM_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentLimits:
    """What is read at all. `max_pages` and `max_total_pixels` count what is asked for, not the whole file."""

    max_bytes: int = 256 * 1024**2
    max_pages: int = 64
    max_pixels: int = 64_000_000
    max_total_pixels: int = 600_000_000
    allow_paths: bool = True
    allow_urls: bool = False
    allow_private_hosts: bool = False
    url_timeout: float = 60.0


def load_pages(
    source: Source,
    pages: Sequence[int] | None = None,
    *,
    dpi: float = 144.0,
    password: str | None = None,
    limits: DocumentLimits | None = None,
) -> list[Image.Image]:
    """The pages of these numbers, counted from 1 as viewers do, as RGB; all of them if None.

    At the default 144 dpi a sheet of A4 is 1191 x 1684 pixels, about three by four tiles. Filled-in forms
    are drawn. Raises `DocumentError` with the numbers; pages are never left out silently.
    """
    limits = limits or DocumentLimits()
    if not isinstance(dpi, Real) or not 1 <= dpi <= 2400:
        raise DocumentError(f"dpi must lie in 1..2400, not {dpi!r}")
    if password is not None and not isinstance(password, str):
        raise DocumentError(f"a password must be a string, not {type(password).__name__}")
    with _opened(source, password, limits) as (pdf, name):
        chosen = _check_numbers(pages, len(pdf), name, limits)
        _check_pixels([pdf.get_page_size(number - 1) for number in chosen], chosen, dpi, name, limits)
        return [_render(pdf, number, dpi, name) for number in chosen]


@contextmanager
def _opened(source: Source, password: str | None, limits: DocumentLimits) -> Iterator[tuple[Any, str]]:
    """The open document and its name for messages."""
    try:
        import pypdfium2
    except ImportError as reason:
        raise DocumentError("reading PDF needs pypdfium2: pip install 'internvl[pdf]'") from reason
    content, name = read_source(source, limits, DocumentError), describe(source)
    with _PDFIUM_LOCK:
        try:
            pdf = pypdfium2.PdfDocument(content, password=password)
        except pypdfium2.PdfiumError as reason:
            if "password" in str(reason).lower():
                raise DocumentError(f"{name} is encrypted: hand over its password") from reason
            size = len(content)
            raise DocumentError(f"{name} ({size} bytes) is no PDF, or is damaged: {reason}") from reason
        with closing(pdf):
            try:
                pdf.init_forms()
                yield pdf, name
            except pypdfium2.PdfiumError as reason:
                raise DocumentError(f"{name} is damaged: {reason}") from reason


def _check_numbers(pages: Sequence[int] | None, total: int, name: str, limits: DocumentLimits) -> list[int]:
    if pages is not None and not isinstance(pages, Sequence):
        raise DocumentError(f"pages must be a list of numbers, counted from 1, not {pages!r}")
    chosen = list(range(1, total + 1)) if pages is None else list(pages)
    if not chosen:
        raise DocumentError(f"{name} has {total} pages, of which none is asked for")
    if len(chosen) > limits.max_pages:
        raise DocumentError(
            f"{len(chosen)} pages of {name}, the limit is max_pages={limits.max_pages};"
            " choose some with pages=[...]"
        )
    wrong = [number for number in chosen if not isinstance(number, int) or not 1 <= number <= total]
    if wrong:
        raise DocumentError(f"{name} has pages 1..{total}, not {', '.join(map(str, wrong[:5]))}")
    return chosen


def _check_pixels(
    sizes: list[tuple[float, float]], numbers: list[int], dpi: float, name: str, limits: DocumentLimits
) -> None:
    """Sizes are in points. A page is rendered to its size rounded up."""
    scale, total = dpi / POINTS_PER_INCH, 0.0
    for (width, height), number in zip(sizes, numbers, strict=True):
        pixels = (width * scale + 1) * (height * scale + 1)
        total += pixels
        if not 0 < pixels <= limits.max_pixels:
            raise DocumentError(
                f"page {number} of {name}, {width:.0f} x {height:.0f} points, has {pixels:.0f} pixels"
                f" at {dpi:g} dpi, the limit is max_pixels={limits.max_pixels}: lower dpi"
            )
    if total > limits.max_total_pixels:
        raise DocumentError(
            f"{len(numbers)} pages of {name} have {total:.0f} pixels at {dpi:g} dpi, the limit is"
            f" max_total_pixels={limits.max_total_pixels}: lower dpi or ask for fewer pages"
        )


def _render(pdf: Any, number: int, dpi: float, name: str) -> Image.Image:
    page = pdf[number - 1]
    with closing(page), closing(page.render(scale=dpi / POINTS_PER_INCH, rev_byteorder=True)) as bitmap:
        image: Image.Image = bitmap.to_pil()
        # The picture lies in memory that PDFium frees.
        return image.convert("RGB") if image.mode != "RGB" else image.copy()
