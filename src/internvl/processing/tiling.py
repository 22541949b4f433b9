"""Which grid of tiles a picture gets, and cutting it: integers and PIL only.

Knows no files, no tensors and no models; `tiles` turns what is cut here into tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from PIL import Image

from internvl.config import Normalization, TilingConfig
from internvl.errors import ImageError
from internvl.processing.canvas import pad_to_square, resize

Detail = Literal["low", "high", "auto"]
RGB = tuple[float, float, float]

NORMALIZATIONS: Mapping[Normalization, tuple[RGB, RGB]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.4814546, 0.4578275, 0.40821073), (0.2686295, 0.2613025, 0.2757711)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and standard deviation of red, green and blue, for values in 0..1."""


@dataclass(frozen=True, slots=True)
class Grid:
    """`columns` tiles wide, `rows` tiles high, cut row by row."""

    columns: int
    rows: int

    @property
    def num_tiles(self) -> int:
        """Tiles of the grid itself, without a thumbnail."""
        return self.columns * self.rows


@dataclass(frozen=True, slots=True, kw_only=True)
class TileChoice:
    """What the caller wants for one picture; None leaves it to the model's configuration.

    `detail` is the word of the OpenAI protocol: "low" is one tile, "high" is the model's own
    maximum even where several pictures share a budget, "auto" is None. Numbers win over `detail`.
    """

    max_tiles: int | None = None
    min_tiles: int | None = None
    thumbnail: bool | None = None
    detail: Detail | None = None


def choose_grid(
    width: int, height: int, *, min_tiles: int = 1, max_tiles: int = 12, tile_size: int = 448
) -> Grid:
    """The grid whose aspect ratio is nearest to the picture's (InternVL tiling rule).

    Grids of `min_tiles` to `max_tiles` tiles are tried from small to large. At exactly equal
    distance the later one is taken if the picture has more pixels than half of that grid.
    Raises `ImageError` for an empty picture or impossible limits.
    """
    if width < 1 or height < 1:
        raise ImageError(f"a picture of {width} x {height} pixels cannot be cut into tiles")
    if not 1 <= min_tiles <= max_tiles:
        raise ImageError(
            f"tile limits must satisfy 1 <= min_tiles <= max_tiles, not {min_tiles} and {max_tiles}"
        )
    aspect = width / height
    best, best_distance = (1, 1), float("inf")
    for columns, rows in _candidates(min_tiles, max_tiles):
        distance = abs(aspect - columns / rows)
        is_tie = distance == best_distance
        if distance < best_distance or (is_tie and width * height > 0.5 * tile_size**2 * columns * rows):
            best, best_distance = (columns, rows), distance
    return Grid(*best)


@lru_cache(maxsize=64)
def _candidates(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """(columns, rows) of every allowed grid, by number of tiles.

    Grids of equal size follow in the iteration order of a CPython set filled as the released code
    fills it. That order decides only exact ties with min_tiles > 1, and there it is what was trained.
    """
    grids = [
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(-(-min_tiles // columns), max_tiles // columns + 1)
    ]
    grids.sort(key=lambda grid: (max(*grid, min_tiles), grid))
    return tuple(sorted(set(grids), key=lambda grid: grid[0] * grid[1]))


def plan(width: int, height: int, tiling: TilingConfig) -> tuple[Grid, bool]:
    """The grid of a picture of this size, and whether a thumbnail follows it. Nothing is cut."""
    if not tiling.dynamic:
        return Grid(1, 1), False
    grid = choose_grid(
        width, height, min_tiles=tiling.min_tiles, max_tiles=tiling.max_tiles, tile_size=tiling.tile_size
    )
    return grid, tiling.thumbnail and grid.num_tiles > 1


def count_tiles(width: int, height: int, tiling: TilingConfig) -> int:
    """Tiles of a picture of this size, thumbnail included."""
    grid, has_thumbnail = plan(width, height, tiling)
    return grid.num_tiles + has_thumbnail


def cut(image: Image.Image, tiling: TilingConfig) -> list[Image.Image]:
    """RGB picture to RGB tiles of `tile_size` squared: row by row, the thumbnail last.

    The whole picture is stretched to the grid with PIL's bicubic filter. Without dynamic tiling it
    becomes one tile, after padding to a square if the configuration asks for it. Raises `ImageError`,
    also for a picture so thin that it would become huge on the way.
    """
    if image.mode != "RGB":
        raise ImageError(f"tiles are cut from RGB pictures, not {image.mode}: read it with image.load_image")
    grid, has_thumbnail = plan(image.width, image.height, tiling)
    size = tiling.tile_size
    if not tiling.dynamic and tiling.pad_to_square:
        image = pad_to_square(image, fill_colour(tiling.normalization))
    canvas = resize(image, size * grid.columns, size * grid.rows)
    if grid.num_tiles == 1:
        return [canvas]
    corners = [(size * column, size * row) for row in range(grid.rows) for column in range(grid.columns)]
    tiles = [canvas.crop((left, top, left + size, top + size)) for left, top in corners]
    return [*tiles, resize(image, size, size)] if has_thumbnail else tiles


def fill_colour(normalization: Normalization) -> tuple[int, int, int]:
    """The colour that becomes about zero: `int(mean * 255)` of each channel."""
    red, green, blue = (int(mean * 255) for mean in NORMALIZATIONS[normalization][0])
    return red, green, blue


def resolve(
    tiling: TilingConfig, choice: TileChoice | None = None, *, budget: int | None = None
) -> TilingConfig:
    """The model's tiling with the caller's choice for one picture.

    `budget` is this picture's share where several share one (see `split_budget`): it lowers the
    maximum unless the choice names a number or "high". A one-tile model stays one: a maximum is then met
    anyway, a minimum above 1 raises `ImageError`, as do contradictory numbers.
    """
    choice = choice or TileChoice()
    upper = choice.max_tiles or _default_maximum(tiling, choice.detail, budget)
    lower = choice.min_tiles or min(tiling.min_tiles, upper)
    if choice.max_tiles is None:
        upper = max(upper, lower)
    for name, value in (("max_tiles", choice.max_tiles), ("min_tiles", choice.min_tiles)):
        if value is not None and value < 1:
            raise ImageError(f"{name} must be at least 1, not {value}")
    if lower > upper:
        raise ImageError(f"min_tiles={lower} is more than max_tiles={upper}")
    if not tiling.dynamic:
        if lower > 1 and choice.min_tiles is not None:
            raise ImageError(f"this model reads every picture as one tile; min_tiles={lower} cannot be had")
        return tiling
    thumbnail = tiling.thumbnail if choice.thumbnail is None else choice.thumbnail
    return replace(tiling, min_tiles=lower, max_tiles=upper, thumbnail=thumbnail)


def _default_maximum(tiling: TilingConfig, detail: Detail | None, budget: int | None) -> int:
    """The maximum where the caller named no number."""
    if detail not in (None, "low", "high", "auto"):
        raise ImageError(f'detail must be "low", "high" or "auto", not {detail!r}')
    if detail == "low":
        return 1
    if detail == "high" or budget is None:
        return tiling.max_tiles
    return min(tiling.max_tiles, max(1, budget))


def split_budget(total: int, num_images: int) -> int:
    """The maximum each of several pictures gets (InternVL rule): an equal share, at least one tile."""
    if num_images < 1:
        raise ImageError(f"a tile budget is split over at least one picture, not {num_images}")
    return max(1, total // num_images)


def fit_budget(sizes: Sequence[tuple[int, int]], total: int, tiling: TilingConfig) -> list[int]:
    """A maximum for each picture (width, height) so that all tiles, thumbnails included, fit `total`.

    Unlike `split_budget`, small pictures leave room to large ones: whichever has most tiles is lowered
    first. Every picture keeps at least one tile, so more pictures than `total` do not fit.
    """
    limits = [tiling.max_tiles] * len(sizes)
    counts = [count_tiles(*size, tiling) for size in sizes]
    while sum(counts) > total and max(counts) > 1:
        index = counts.index(max(counts))
        limits[index] = max(1, min(limits[index], counts[index]) - 1)
        lowered = resolve(tiling, TileChoice(max_tiles=limits[index]))
        counts[index] = count_tiles(*sizes[index], lowered)
    return limits
