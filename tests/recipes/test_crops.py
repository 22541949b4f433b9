"""Random crops: a step is a function of its number, and all pictures come before any comes again."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
import torch
from PIL import Image
from torch import Tensor

from internvl.config import NORMALIZATION_STATISTICS
from internvl.errors import InputError
from internvl.recipes.crops import Crops, Pictures, teacher_size, view


def encoded(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def plain(count: int, blue: int) -> tuple[bytes, ...]:
    """Pictures of one colour, told apart by their red."""
    return tuple(encoded(Image.new("RGB", (40, 30), (index * 10, 0, blue))) for index in range(count))


KINDS = (
    Pictures(encoded=plain(7, 10), batch=3, size=28, smallest=0.4),
    Pictures(encoded=plain(4, 200), batch=2, size=56, smallest=0.35, words_NW=torch.eye(4)),
)


def teacher(pixels_N3HW: Tensor) -> Tensor:
    return pixels_N3HW.mean((2, 3))[:, None, None]


def reds(seen_N3HW: Tensor) -> list[int]:
    """The numbers of the pictures."""
    return [round(float(red) / 10) for red in seen_N3HW[:, 0].mean((1, 2))]


def test_kinds_take_turns() -> None:
    crops = Crops(KINDS, teacher)
    for step in range(4):
        tiles_N3HW, seen_N3HW, words_NW = crops.read(step)
        kind = KINDS[step % 2]
        assert (words_NW is None) == (kind.words_NW is None)
        if words_NW is not None:
            assert words_NW.argmax(1).tolist() == reds(seen_N3HW)
        assert tiles_N3HW.shape == (kind.batch, 3, kind.size, kind.size)
        assert seen_N3HW.shape == (kind.batch, 3, 256, 256)
        assert {round(float(blue)) for blue in seen_N3HW[:, 2].flatten()} == {(10, 200)[step % 2]}
    crops.close()


def test_an_epoch_has_no_picture_twice() -> None:
    crops = Crops(KINDS, teacher)
    first, second = ([reds(crops.read(step)[1]) for step in steps] for steps in ((0, 2), (4, 6)))
    for epoch in (first, second):
        flat = [red for step in epoch for red in step]
        assert len(set(flat)) == len(flat) == 6
    assert first != second
    every = [red for step in (1, 3) for red in reds(crops.read(step)[1])]
    assert sorted(every) == [0, 1, 2, 3]
    crops.close()


def take(count: int, position: int) -> list[tuple[Tensor, Tensor, Sequence[str], int]]:
    crops = Crops(KINDS, teacher, position)
    try:
        taken = [crops.take() for _ in range(count)]
    finally:
        crops.close()
    return [
        (batch.tiles_N3HW, batch.teacher_NGGF, batch.keys, one.position)
        for one in taken
        for batch in one.batches
    ]


def test_a_step_depends_on_its_number_alone() -> None:
    whole, rest = take(5, 0), take(2, 3)
    for one, other in zip(whole[3:], rest, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
        assert one[2:] == other[2:]
    assert [position for *_, position in whole] == [1, 2, 3, 4, 5]
    assert whole[4][2] == ("step 5",)


def test_both_see_the_same_crop() -> None:
    """Of a picture whose red grows to the right and green downwards."""
    image = Image.linear_gradient("L").resize((120, 100))
    picture = encoded(Image.merge("RGB", (image.rotate(90, expand=True).resize((120, 100)), image, image)))
    crops = Crops([Pictures(encoded=(picture,) * 4, batch=4, size=56, smallest=0.2)], teacher)
    tiles_N3HW, seen_N3HW, _ = crops.read(0)
    crops.close()
    mean, std = (torch.tensor(values)[:, None, None] for values in NORMALIZATION_STATISTICS["imagenet"])
    pixels_N3HW = (tiles_N3HW * std + mean) * 255
    smaller_N3HW = torch.nn.functional.interpolate(seen_N3HW, size=56, mode="area")
    assert (pixels_N3HW - smaller_N3HW).abs().mean() < 1.5
    corners_N3 = pixels_N3HW[:, :, 0, 0]
    assert corners_N3.std(0).min() > 2  # four different crops


@pytest.mark.parametrize(
    ("size", "seen"), [(14, 256), (28, 256), (56, 256), (112, 256), (168, 192), (224, 256), (448, 512)]
)
def test_the_teachers_map_divides_into_the_towers_cells(size: int, seen: int) -> None:
    assert teacher_size(size) == seen
    assert (seen // 32) % max(1, size // 28) == 0


def test_without_chance_the_whole_picture() -> None:
    halves = Image.new("RGB", (64, 32), (255, 0, 0))
    halves.paste((0, 0, 255), (32, 0, 64, 32))
    tiles_3HW, seen_3HW = view(encoded(halves), 56)
    assert seen_3HW.shape == (3, 256, 256)
    assert seen_3HW[:, 100, 20].tolist() == [255, 0, 0]
    assert seen_3HW[:, 100, 230].tolist() == [0, 0, 255]
    mean, std = NORMALIZATION_STATISTICS["imagenet"]
    assert float(tiles_3HW[0, 20, 5]) == pytest.approx((1 - mean[0]) / std[0], rel=1e-5)


def test_too_few_pictures_for_a_step() -> None:
    with pytest.raises(InputError, match="kind 1 has 1 pictures, fewer than a step of 2"):
        Crops([KINDS[0], Pictures(encoded=plain(1, 0), batch=2, size=28, smallest=1)], teacher)
