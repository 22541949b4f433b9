"""Which grid of tiles a picture gets, and cutting it: integers and PIL only.

Knows no files, no tensors and no models; `tiles` turns what is cut here into tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, get_args

from PIL import Image

from internvl.config import NORMALIZATION_STATISTICS, Normalization, TilingConfig
from internvl.errors import ImageError
from internvl.processing.canvas import pad_to_square, resize

Detail = Literal["low", "high", "auto"]

MAX_TILES = 512
"""Of one picture: at 256 tokens a tile, the longest context of the released models (131072)."""


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
    Raises `ImageError` for values of another kind, numbers outside 1..`MAX_TILES`, or a minimum above the
    maximum.
    """

    max_tiles: int | None = None
    min_tiles: int | None = None
    thumbnail: bool | None = None
    detail: Detail | None = None

    def __post_init__(self) -> None:
        for name in ("max_tiles", "min_tiles"):
            if (value := getattr(self, name)) is not None:
                _check_number(name, value)
        if self.thumbnail is not None and not isinstance(self.thumbnail, bool):
            raise ImageError(f"thumbnail must be true or false, not {self.thumbnail!r}")
        if self.detail not in (None, *get_args(Detail)):
            raise ImageError(f"detail must be 'low', 'high' or 'auto', not {self.detail!r}")
        if self.min_tiles and self.max_tiles and self.min_tiles > self.max_tiles:
            raise ImageError(f"min_tiles={self.min_tiles} is more than max_tiles={self.max_tiles}")


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_TILES:
        raise ImageError(f"{name} must be a whole number in 1..{MAX_TILES}, not {value!r}")


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
    if not 1 <= min_tiles <= max_tiles <= MAX_TILES:
        raise ImageError(
            f"tile limits must satisfy 1 <= min_tiles <= max_tiles <= {MAX_TILES}, not {min_tiles} and "
            f"{max_tiles}"
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
    red, green, blue = (int(mean * 255) for mean in NORMALIZATION_STATISTICS[normalization][0])
    return red, green, blue


def resolve(
    tiling: TilingConfig, choice: TileChoice | None = None, *, budget: int | None = None
) -> TilingConfig:
    """The model's tiling with the caller's choice for one picture.

    `budget` is this picture's share where several share one (see `split_budget`): it lowers the
    maximum unless the choice names a number or "high". A one-tile model stays one: a maximum is then met
    anyway, a minimum above 1 raises `ImageError`.
    """
    choice = choice or TileChoice()
    upper = choice.max_tiles or _default_maximum(tiling, choice.detail, budget)
    lower = choice.min_tiles or min(tiling.min_tiles, upper)
    if not tiling.dynamic:
        if choice.min_tiles is not None and lower > 1:
            raise ImageError(f"this model reads every picture as one tile; min_tiles={lower} cannot be had")
        return tiling
    thumbnail = tiling.thumbnail if choice.thumbnail is None else choice.thumbnail
    return replace(tiling, min_tiles=lower, max_tiles=max(upper, lower), thumbnail=thumbnail)


def _default_maximum(tiling: TilingConfig, detail: Detail | None, budget: int | None) -> int:
    """The maximum where the caller named no number."""
    if detail == "low":
        return 1
    if detail == "high" or budget is None:
        return tiling.max_tiles
    return min(tiling.max_tiles, budget)


def split_budget(total: int, num_images: int) -> int:
    """The maximum each of several pictures gets (InternVL rule): an equal share, at least one tile."""
    if num_images < 1:
        raise ImageError(f"a tile budget is split over at least one picture, not {num_images}")
    if not isinstance(total, int) or isinstance(total, bool) or total < 1:
        raise ImageError(f"a tile budget (total_tiles) must be a whole number of at least 1, not {total!r}")
    return max(1, total // num_images)
