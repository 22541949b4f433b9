"""Pixels of any kind to upright 8-bit RGB, by a stated policy. docs/how-to/images.md is this file in prose.

Knows PIL and NumPy only: no files, no limits, no tensors.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from internvl.errors import ImageError

UPRIGHT: Mapping[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to the turn that undoes it; those from 5 swap width and height."""
SIDEWAYS = frozenset(turn for orientation, turn in UPRIGHT.items() if orientation >= 5)
TURN_FIELDS = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
"""Where Pillow's `info` may hold an orientation."""

# What PIL's readers raise on damaged input, metadata included.
DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, ArithmeticError, AttributeError,
    MemoryError, RuntimeError, struct.error,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePolicy:
    """What pictures that are not plain RGB become.

    `apply_exif` turns a photo upright as its camera recorded. `background` is the colour transparent
    pixels are laid on; None drops the alpha channel, so that hidden colours show.
    """

    apply_exif: bool = True
    background: tuple[int, int, int] | None = (255, 255, 255)


RELEASED_POLICY = ImagePolicy(apply_exif=False, background=None)
"""What the released code does, for reproducing its numbers on such pictures."""


def to_rgb(picture: Image.Image, policy: ImagePolicy) -> Image.Image:
    """Any PIL picture as upright RGB; one that is so already is returned itself. Raises `ImageError`."""
    if policy.apply_exif:
        picture = _turn_upright(picture)
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I;16"):
        return from_array(np.asarray(picture).astype(np.uint16), policy)
    if picture.mode in ("I", "F"):
        return from_array(_wide_values(picture), policy)
    try:
        if picture.has_transparency_data:
            return _lay_on(picture.convert("RGBA"), policy.background)
        return picture.convert("RGB")
    except ValueError as reason:
        raise ImageError(
            f"no conversion from {picture.mode} to RGB ({reason}); convert it before"
        ) from reason


def _turn_upright(picture: Image.Image) -> Image.Image:
    turn = find_turn(picture)
    if turn is None:
        return picture
    turned = picture.transpose(turn)
    # Pillow copies the orientation too: whoever read this picture again would turn it again.
    for name in TURN_FIELDS:
        turned.info.pop(name, None)
    return turned


def find_turn(picture: Image.Image) -> Image.Transpose | None:
    """The turn that makes a photo upright as its camera recorded, if any; from what has been read so far."""
    try:
        # Not that of the PNG reader, which decodes a picture to look for an orientation behind its pixels.
        orientation = Image.Image.getexif(picture).get(ExifTags.Base.Orientation)
    except DECODE_ERRORS:
        # Damaged metadata says nothing about the pixels.
        return None
    return UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _lay_on(picture_RGBA: Image.Image, background: tuple[int, int, int] | None) -> Image.Image:
    if background is None or picture_RGBA.getchannel("A").getextrema()[0] == 255:
        return picture_RGBA.convert("RGB")
    canvas = Image.new("RGBA", picture_RGBA.size, (*background, 255))
    canvas.alpha_composite(picture_RGBA)
    return canvas.convert("RGB")


def _wide_values(picture: Image.Image) -> NDArray[Any]:
    """32-bit pictures by the range they use: integers of 16 bits, floats of 0..1 or 0..255."""
    values = np.asarray(picture)
    low, high = values.min(), values.max()
    if picture.mode == "I" and low >= 0 and high <= 65535:
        return values.astype(np.uint16)
    if picture.mode == "F" and low >= 0 and high <= 1:
        return values
    if picture.mode == "F" and low >= 0 and high <= 255:
        return values / 255
    raise ImageError(f"32-bit pixels lie in {low}..{high}; scale them to 8 bits (0..255) before")


def from_array(pixels: NDArray[Any], policy: ImagePolicy) -> Image.Image:
    """(H, W) or (H, W, 1 | 3 | 4), RGB order, as a picture.

    uint8 is taken as it is, uint16 from its full range, bool as black and white, floats from 0..1.
    """
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))) or 0 in pixels.shape:
        raise ImageError(
            f"arrays must be (H, W) or (H, W, 1 | 3 | 4), not {pixels.shape}; transpose (C, H, W) ones"
        )
    picture = Image.fromarray(np.ascontiguousarray(_eight_bits(pixels)))
    return to_rgb(picture, policy) if picture.mode != "RGB" else picture


def _eight_bits(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    kind = pixels.dtype
    if kind == np.uint8:
        return pixels
    if kind == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    if kind.kind == "u" and kind.itemsize == 2:
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if kind.kind != "f":
        raise ImageError(
            f"arrays must be uint8, uint16, bool or float, not {kind}; for 0..255 use .astype('uint8')"
        )
    low, high = pixels.min(), pixels.max()
    # Written so that NaN fails too.
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ImageError(f"float pixels must lie in 0..1, not {low}..{high}; for 0..255 use .astype('uint8')")
    scaled: NDArray[np.uint8] = np.rint(np.clip(pixels, 0, 1).astype(np.float32) * 255).astype(np.uint8)
    return scaled
