"""The policy for pictures that are not plain 8-bit RGB."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from internvl.errors import ImageError
from internvl.processing.colour import RELEASED_POLICY, UPRIGHT, ImagePolicy
from internvl.processing.image import load_image, read_size

WHITE, BLACK, RED = (255, 255, 255), (0, 0, 0), (255, 0, 0)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_turns_photos_upright(orientation, kind):
    upright = Image.fromarray(noise(6, 10, 3))
    undo = {
        Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
        Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
    }
    turn = UPRIGHT.get(orientation)
    stored = upright if turn is None else upright.transpose(undo.get(turn, turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(stored, kind, exif=exif)
    np.testing.assert_array_equal(np.asarray(load_image(content)), np.asarray(upright))
    if kind == "PNG":
        np.testing.assert_array_equal(
            np.asarray(load_image(content, policy=RELEASED_POLICY)), np.asarray(stored)
        )
        opened = Image.open(io.BytesIO(content))
        np.testing.assert_array_equal(np.asarray(load_image(opened)), np.asarray(upright))


def oriented(kind: str, place: str, orientation: int) -> bytes:
    """A photo whose orientation is written in the EXIF of its format, in XMP, or as old programs do."""
    photo, exif, texts = Image.fromarray(noise(6, 10, 3)), Image.Exif(), PngInfo()
    exif[0x0112] = orientation
    xmp = f'<rdf:Description tiff:Orientation="{orientation}"/>'
    if place == "exif":
        return encode(photo, kind, exif=exif)
    if kind == "TIFF":
        return encode(photo, kind, tiffinfo={700: xmp.encode()})
    if kind != "PNG":
        return encode(photo, kind, xmp=xmp.encode())
    raw = exif.tobytes()
    if place == "xmp":
        texts.add_itxt("XML:com.adobe.xmp", xmp)
    else:
        texts.add_text("Raw profile type exif", f"\nexif\n{len(raw):8}\n{raw.hex()}\n", zip=True)
    return encode(photo, kind, pnginfo=texts)


PLACES = [(kind, place) for kind in ("JPEG", "PNG", "WEBP", "TIFF") for place in ("exif", "xmp")]


@pytest.mark.parametrize("policy", [ImagePolicy(), RELEASED_POLICY], ids=["upright", "released"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "place"), [*PLACES, ("PNG", "raw profile")])
def test_a_photo_is_turned_once_and_its_size_is_known_before(kind, place, orientation, policy):
    content = oriented(kind, place, orientation)
    once = load_image(content, policy=policy)
    assert read_size(content, policy=policy) == once.size
    for picture in (once, once.copy(), once.convert("RGBA")):
        again = load_image(picture, policy=ImagePolicy(apply_exif=policy.apply_exif))
        np.testing.assert_array_equal(np.asarray(again), np.asarray(once))
    if policy.apply_exif:
        assert once.size == ((6, 10) if orientation >= 5 else (10, 6))


def test_sizes_are_read_without_decoding(monkeypatch):
    content = oriented("PNG", "xmp", 6)
    monkeypatch.setattr(Image.Image, "load", None)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    assert read_size(content) == (6, 10)


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_meaningless_orientations_are_ignored(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert load_image(encode(Image.new("RGB", (3, 5)), exif=exif)).size == (3, 5)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_damaged_exif_is_ignored():
    content = encode(Image.new("RGB", (16, 8), RED), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert load_image(content).size == (16, 8)


def test_transparency_is_laid_on_white():
    image = Image.new("RGBA", (4, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.putpixel((2, 0), (255, 0, 0, 128))
    row = [load_image(encode(image)).getpixel((x, 0)) for x in range(3)]
    assert row[0] == RED
    assert row[1] == WHITE
    assert row[2][0] == 255
    assert 126 <= row[2][1] == row[2][2] <= 128


@pytest.mark.parametrize("background", [(0, 0, 0), (10, 20, 30)])
def test_the_background_is_a_choice(background):
    image = load_image(Image.new("RGBA", (2, 2), (1, 2, 3, 0)), policy=ImagePolicy(background=background))
    assert image.getpixel((0, 0)) == background


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_the_released_policy_equals_plain_conversion(mode):
    image = Image.fromarray(noise(5, 7, 4)).convert(mode)
    np.testing.assert_array_equal(
        np.asarray(load_image(image, policy=RELEASED_POLICY)), np.asarray(image.convert("RGB"))
    )


def test_opaque_alpha_changes_nothing():
    pixels = noise(5, 7, 4)
    pixels[:, :, 3] = 255
    np.testing.assert_array_equal(np.asarray(load_image(encode(Image.fromarray(pixels)))), pixels[:, :, :3])


def test_palette_transparency_by_index_and_by_bytes():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 0])
    image.putpixel((1, 0), 1)
    for transparency in (1, b"\xff\x00"):
        loaded = load_image(encode(image, transparency=transparency))
        assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [RED, WHITE]
        released = load_image(encode(image, transparency=transparency), policy=RELEASED_POLICY)
        assert [released.getpixel((x, 0)) for x in (0, 1)] == [RED, BLACK]


def test_one_transparent_colour_of_rgb_and_grey():
    for mode, colour in (("RGB", RED), ("L", 7)):
        loaded = load_image(encode(Image.new(mode, (2, 2), colour), transparency=colour))
        assert loaded.getpixel((1, 1)) == WHITE


def test_palettes_and_bilevel():
    palette = Image.fromarray(noise(9, 9, 3)).quantize(16)
    np.testing.assert_array_equal(np.asarray(load_image(encode(palette))), np.asarray(palette.convert("RGB")))
    bilevel = Image.fromarray(noise(4, 4) > 127)
    np.testing.assert_array_equal(np.asarray(load_image(encode(bilevel)))[:, :, 0], np.asarray(bilevel) * 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind):
    values = np.array([[0, 256, 257, 32768, 65535]], np.uint16)
    loaded = np.asarray(load_image(encode(Image.fromarray(values), kind)))
    assert loaded[0, :, 0].tolist() == [0, 1, 1, 128, 255]
    np.testing.assert_array_equal(loaded, np.asarray(load_image(values)))


def test_wide_integers_and_floats_by_range():
    assert load_image(Image.new("I", (1, 1), 65535)).getpixel((0, 0)) == WHITE
    assert load_image(Image.new("F", (1, 1), 1.0)).getpixel((0, 0)) == WHITE
    assert load_image(encode(Image.new("F", (1, 1), 128.0), "TIFF")).getpixel((0, 0)) == (128, 128, 128)
    for mode, value in (("I", 70_000), ("I", -1), ("F", 300.0), ("F", float("nan"))):
        with pytest.raises(ImageError, match="scale them to 8 bits"):
            load_image(Image.new(mode, (1, 1), value))


def test_cmyk_jpegs_as_adobe_writes_them():
    red, white = Image.new("CMYK", (8, 8), (0, 255, 255, 0)), Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    content = encode(red, "JPEG", quality=95)
    assert b"Adobe" in content[:200]
    loaded = load_image(content)
    assert np.abs(np.asarray(loaded, int) - RED).max() <= 4
    assert load_image(encode(white, "JPEG")).getpixel((4, 4)) == WHITE


def test_animations_give_their_first_frame():
    frames = [Image.new("RGB", (6, 4), colour) for colour in (RED, BLACK, WHITE)]
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        content = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert load_image(content).getpixel((2, 2)) == RED, kind


@pytest.mark.parametrize("mode", ["L", "RGBX", "YCbCr", "HSV", "LAB", "RGBa"])
def test_every_other_mode_has_a_conversion(mode):
    assert load_image(Image.new(mode, (2, 2))).mode == "RGB"


def test_a_mode_without_conversion_is_named():
    with pytest.raises(ImageError, match="no conversion from La to RGB"):
        load_image(Image.new("La", (2, 2)))


def test_arrays():
    grey, colour = noise(5, 7), noise(5, 7, 3)
    np.testing.assert_array_equal(np.asarray(load_image(colour)), colour)
    np.testing.assert_array_equal(np.asarray(load_image(grey))[:, :, 1], grey)
    np.testing.assert_array_equal(np.asarray(load_image(grey[:, :, None]))[:, :, 2], grey)
    np.testing.assert_array_equal(np.asarray(load_image(colour[::2, ::-1])), colour[::2, ::-1])
    np.testing.assert_array_equal(np.asarray(load_image(colour / 255)), colour)
    np.testing.assert_array_equal(np.asarray(load_image((colour / 255).astype(np.float32))), colour)
    np.testing.assert_array_equal(np.asarray(load_image(colour.astype(np.uint16) * 257)), colour)
    np.testing.assert_array_equal(np.asarray(load_image(colour.astype(">u2") * 257)), colour)
    assert load_image(np.array([[True, False]])).getpixel((0, 0)) == WHITE
    assert load_image(np.zeros((2, 2, 4), np.uint8)).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 20, 30), np.uint8), r"not \(3, 20, 30\); transpose"),
        (np.zeros(5, np.uint8), r"not \(5,\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"not \(1, 4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (np.zeros((4, 4, 3), np.int64), "not int64"),
        (np.full((4, 4), 255.0), r"in 0\.\.1, not 255"),
        (np.full((4, 4), np.nan), r"in 0\.\.1, not nan"),
        (np.full((4, 4), np.inf), r"in 0\.\.1, not inf"),
        (np.full((4, 4), -0.5), r"in 0\.\.1, not -0\.5"),
        (np.array([["a"]]), "not <U1"),
        (np.array([[None]]), "not object"),
    ],
)
def test_arrays_that_are_no_pictures(array, message):
    with pytest.raises(ImageError, match=message):
        load_image(array)
