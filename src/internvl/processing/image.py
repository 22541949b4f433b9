"""A picture from whatever the user has, as upright RGB, within limits checked before decoding.

Sources: path, bytes, open file, data URL, web address (if opened), PIL, NumPy. Knows no tiles and no
tensors; `colour` holds the policy for pictures that are not plain RGB.
"""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from internvl.errors import ImageError
from internvl.processing.colour import (
    DECODE_ERRORS,
    SIDEWAYS,
    ImagePolicy,
    find_turn,
    from_array,
    to_rgb,
)
from internvl.processing.source import Source, check_path, describe, is_path, read_source

ImageSource: TypeAlias = Source | Image.Image | NDArray[Any]

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
"""Formats whose readers are opened at all; none of them starts another program."""

# (offset, bytes, what it is and what to do): said when a file is none of FORMATS.
KNOWN_OTHERS = (
    (0, b"%PDF", "a PDF: hand it over as a document"),
    (0, b"%!PS", "PostScript: convert it to PNG"),
    (4, b"ftyphei", "a HEIC photo: convert it to JPEG"),
    (4, b"ftypmif1", "a HEIF photo: convert it to JPEG"),
    (4, b"ftyp", "a video: hand it over as a video"),
    (0, b"\x1aE\xdf\xa3", "a video: hand it over as a video"),
    (0, b"<svg", "SVG: convert it to PNG"),
    (0, b"<?xml", "XML, perhaps SVG: convert it to PNG"),
    (0, b"<!", "a web page, not a picture: use the address of the picture itself"),
    (0, b"<html", "a web page, not a picture: use the address of the picture itself"),
    (0, b"PK\x03\x04", "a ZIP archive: unpack it"),
    (0, b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull`"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """What is read at all. Bytes and pixels are checked before anything is decoded.

    `max_pixels` is Pillow's own threshold; to go beyond it, raise `PIL.Image.MAX_IMAGE_PIXELS` too.
    `url_timeout` is in seconds, for the whole download.
    """

    max_bytes: int = 64 * 1024 * 1024
    max_pixels: int = 89_478_485
    allow_paths: bool = True
    allow_urls: bool = False
    allow_private_hosts: bool = False
    url_timeout: float = 20.0


def load_image(
    source: ImageSource, limits: ImageLimits | None = None, policy: ImagePolicy | None = None
) -> Image.Image:
    """Any source to an RGB picture. Every failure is an `ImageError` that names the source and the remedy.

    An RGB `PIL.Image` that needs no change is returned itself; a source is never modified.
    """
    limits, policy = limits or ImageLimits(), policy or ImagePolicy()
    if isinstance(source, np.ndarray):
        _check_pixels(source.shape[1::-1] if source.ndim > 1 else source.shape, "the array", limits)
        return from_array(source, policy)
    if isinstance(source, Image.Image):
        name, picture = f"the {source.format or 'PIL'} picture", source
    else:
        content = read_source(source, limits, ImageError)
        name = f"{describe(source)} ({len(content)} bytes)"
        picture = _open(io.BytesIO(content), name, limits)
        name = f"{name}, {picture.format}"
    _check_pixels(picture.size, name, limits)
    try:
        picture.load()
    except DECODE_ERRORS as reason:
        raise ImageError(
            f"{name} of {_times(picture.size)} pixels is cut off or damaged: {reason}; fetch it again"
        ) from reason
    return to_rgb(picture, policy)


def read_size(
    source: ImageSource, limits: ImageLimits | None = None, policy: ImagePolicy | None = None
) -> tuple[int, int]:
    """(width, height) of what `load_image` would give, from the header of the file; nothing is decoded.

    Raises `ImageError`, though not for pixels that are cut off behind the header.
    """
    limits, policy = limits or ImageLimits(), policy or ImagePolicy()
    if isinstance(source, np.ndarray | Image.Image):
        return load_image(source, limits, policy).size
    name = describe(source)
    if not (isinstance(source, str | os.PathLike) and is_path(source)):
        return _upright_size(io.BytesIO(read_source(source, limits, ImageError)), name, limits, policy)
    try:
        with check_path(source, limits, ImageError).open("rb") as file:
            return _upright_size(file, name, limits, policy)
    except OSError as reason:
        raise ImageError(f"cannot read {name}: {reason}") from reason


def _upright_size(file: IO[bytes], name: str, limits: ImageLimits, policy: ImagePolicy) -> tuple[int, int]:
    with _open(file, name, limits) as picture:
        _check_pixels(picture.size, name, limits)
        width, height = picture.size
        is_sideways = find_turn(picture) in SIDEWAYS
        if isinstance(picture, TiffImageFile):
            # Pillow turns these whatever the policy, and gives the turned size unless XMP alone has the turn.
            is_turned = is_sideways and ExifTags.Base.Orientation not in picture.tag_v2
        else:
            is_turned = is_sideways and policy.apply_exif
        return (height, width) if is_turned else (width, height)


def _open(file: IO[bytes], name: str, limits: ImageLimits) -> Image.Image:
    """Only the header is read here."""
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as reason:
        file.seek(0)
        raise ImageError(f"{name} is {_guess(file.read(512))}. Readable are {', '.join(FORMATS)}") from reason
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as reason:
        raise ImageError(
            f"{name} is too large, the limit is max_pixels={limits.max_pixels}: {reason}; shrink it"
        ) from reason
    except DECODE_ERRORS as reason:
        raise ImageError(f"{name} is damaged: {reason}; fetch it again") from reason


def _check_pixels(size: tuple[int, ...], name: str, limits: ImageLimits) -> None:
    pixels = math.prod(size)
    if pixels < 1:
        raise ImageError(f"{name} is empty: {_times(size)} pixels")
    if pixels > limits.max_pixels:
        raise ImageError(
            f"{name} has {_times(size)} = {pixels} pixels, the limit is max_pixels={limits.max_pixels};"
            " shrink it or raise the limit"
        )


def _times(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


def _guess(head: bytes) -> str:
    if head[:1] in b"<\n\r\t \xef":
        head = head.lstrip(b"\xef\xbb\xbf\n\r\t ").lower()
    for offset, mark, meaning in KNOWN_OTHERS:
        if head[offset : offset + len(mark)] == mark:
            return meaning
    return "no picture, or one damaged at the beginning"
