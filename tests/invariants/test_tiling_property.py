"""The grid rule against an independent brute-force statement of it, for random sizes and limits."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from internvl.config import TilingConfig
from internvl.processing.tiling import choose_grid, count_tiles, cut

sides = st.one_of(st.integers(1, 4000), st.integers(1, 200_000), st.sampled_from([224, 448, 672, 896, 1344]))
limits = st.integers(1, 40).flatmap(lambda high: st.tuples(st.integers(1, high), st.just(high)))


def nearest_grids(width: int, height: int, low: int, high: int) -> list[tuple[int, int]]:
    """All grids at the least distance, in exact arithmetic."""
    grids = [(i, j) for i in range(1, high + 1) for j in range(1, high + 1) if low <= i * j <= high]
    distances = [abs(Fraction(width, height) - Fraction(i, j)) for i, j in grids]
    return [grid for grid, distance in zip(grids, distances, strict=True) if distance == min(distances)]


@given(width=sides, height=sides, limits=limits)
def test_no_grid_is_nearer(width, height, limits):
    grid = choose_grid(width, height, min_tiles=limits[0], max_tiles=limits[1])
    chosen = abs(width / height - grid.columns / grid.rows)
    i, j = nearest_grids(width, height, *limits)[0]
    assert limits[0] <= grid.num_tiles <= limits[1]
    assert chosen <= abs(width / height - i / j)


@given(width=sides, height=sides, high=st.integers(1, 40), size=st.sampled_from([224, 448]))
def test_ties_of_one_aspect_go_to_the_largest_grid_the_picture_half_fills(width, height, high, size):
    nearest = sorted(nearest_grids(width, height, 1, high), key=lambda grid: grid[0] * grid[1])
    if len({Fraction(i, j) for i, j in nearest}) > 1:
        return  # two aspects at one distance: rounding decides, see the next test
    filled = [(i, j) for i, j in nearest if 2 * width * height > size**2 * i * j]
    grid = choose_grid(width, height, max_tiles=high, tile_size=size)
    assert (grid.columns, grid.rows) == (filled[-1] if filled else nearest[0])


@given(width=sides, height=sides, limits=limits, size=st.sampled_from([112, 224, 448]))
def test_equal_to_the_rule_read_literally(width, height, limits, size):
    low, high = limits
    pairs = {
        (i, j)
        for n in range(low, high + 1)
        for i in range(1, n + 1)
        for j in range(1, n + 1)
        if low <= i * j <= high
    }
    best, distance = (1, 1), float("inf")
    for i, j in sorted(pairs, key=lambda pair: pair[0] * pair[1]):
        d = abs(width / height - i / j)
        if d < distance:
            best, distance = (i, j), d
        elif d == distance and width * height > 0.5 * size * size * i * j:
            best = (i, j)
    grid = choose_grid(width, height, min_tiles=low, max_tiles=high, tile_size=size)
    assert (grid.columns, grid.rows) == best


@given(width=st.integers(1, 90), height=st.integers(1, 90), limits=limits, thumbnail=st.booleans())
def test_cut_gives_what_was_counted_and_loses_no_pixel(width, height, limits, thumbnail):
    config = TilingConfig(tile_size=4, min_tiles=limits[0], max_tiles=limits[1], thumbnail=thumbnail)
    pixels = np.random.default_rng(width + 100 * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    tiles = [np.asarray(tile) for tile in cut(image, config)]
    grid = choose_grid(width, height, min_tiles=limits[0], max_tiles=limits[1], tile_size=4)
    rows = [
        np.concatenate(tiles[row * grid.columns : (row + 1) * grid.columns], axis=1)
        for row in range(grid.rows)
    ]
    stretched = image.resize((4 * grid.columns, 4 * grid.rows), Image.Resampling.BICUBIC)
    assert (
        len(tiles)
        == count_tiles(width, height, config)
        == grid.num_tiles + (thumbnail and grid.num_tiles > 1)
    )
    np.testing.assert_array_equal(np.concatenate(rows), np.asarray(stretched))
