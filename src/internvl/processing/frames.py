"""Which frames of a video are looked at: pure functions from counts and seconds to indices.

Knows no files and no decoder. Rounding is half to even throughout, as in the released code.
"""

from __future__ import annotations

import math
import random
from itertools import count, pairwise, takewhile
from numbers import Integral, Real
from typing import Literal

import numpy as np

from internvl.errors import VideoError

Bound = tuple[float, float]
"""Start and end of the part to look at, in seconds."""


def segment_indices(num_frames: int, fps: float, num_segments: int, bound: Bound | None = None) -> list[int]:
    """One frame near the middle of each of `num_segments` equal parts (InternVL inference rule).

    Short videos repeat frames. A bound outside the video gives indices outside it: see `window`.
    """
    first, last = _window(num_frames, fps, bound)
    length = (last - first) / num_segments
    return [int(first + length / 2 + round(length * k)) for k in range(num_segments)]


def rate_indices(num_frames: int, fps: float, rate: float, max_frames: int | None = None) -> list[int]:
    """Centres of consecutive spans of 1 / `rate` seconds, at most `max_frames` (InternVL training).

    This is the sampler called `fps{x}`. A video shorter than half a span gives no index.
    """
    span = 1 / rate
    centres = np.arange(span / 2, num_frames / fps + span / 2, span)
    indices = [int(index) for index in np.around(centres * fps) if index < num_frames]
    return indices if max_frames is None else indices[:max_frames]


def interval_indices(
    num_frames: int,
    num_picks: int,
    pick: Literal["random", "middle"] | int = "middle",
    seed: int | None = None,
) -> list[int]:
    """One frame of each of `num_picks` equal intervals (InternVL training).

    "middle", "random" (by `seed`; the last frame of an interval is never drawn), or a fixed offset from each
    start. Where an interval has nothing to draw from, frames of the whole video are drawn. A video of
    fewer than `num_picks` frames repeats its last pick.
    """
    if num_frames < 1 or num_picks < 1:
        raise VideoError(f"cannot pick {num_picks} frames of {num_frames}")
    parts = min(num_picks, num_frames)
    borders = [int(border) for border in np.linspace(0, num_frames, parts + 1)]
    spans = [(start, end - 1) for start, end in pairwise(borders)]
    if pick == "middle":
        indices = [(first + last) // 2 for first, last in spans]
    elif pick == "random":
        generator = random.Random(seed)
        if all(first < last for first, last in spans):
            indices = [generator.randrange(first, last) for first, last in spans]
        else:
            indices = sorted(generator.sample(range(num_frames), parts))
    else:
        indices = [min(first + pick, num_frames - 1) for first, _ in spans]
    return indices + indices[-1:] * (num_picks - parts)


def choose(
    num_frames: int,
    fps: float,
    *,
    num_segments: int | None = None,
    rate: float | None = None,
    bound: Bound | None = None,
    max_frames: int,
) -> list[int]:
    """The indices of one request: segments (8 where nothing is said) or a rate, within `bound`.

    A rate that gives more than `max_frames` is thinned evenly, so that the end of the video is still seen;
    one that gives none yields the middle frame.
    """
    if num_segments is not None and rate is not None:
        raise VideoError("name num_segments or fps, not both")
    first, last = window(num_frames, fps, bound)
    if rate is None:
        wanted = 8 if num_segments is None else num_segments
        if not isinstance(wanted, Integral) or not 1 <= wanted <= max_frames:
            raise VideoError(f"num_segments must lie in 1..{max_frames} (max_frames), not {wanted!r}")
        return [min(index, last) for index in segment_indices(num_frames, fps, wanted, bound)]
    if not isinstance(rate, Real) or not 0 < rate < math.inf:
        raise VideoError(f"fps must be a positive number, not {rate!r}")
    found = _spread(last - first + 1, min(max(1.0, fps / rate), 2.0 * num_frames))
    if len(found) > max_frames:
        found = [found[(2 * k + 1) * len(found) // (2 * max_frames)] for k in range(max_frames)]
    return [first + index for index in found]


def _spread(num_frames: int, step: float) -> list[int]:
    """The frame in the middle of every `step` frames; `rate_indices` rounds, so it repeats and skips some."""
    centres = (int((k + 0.5) * step) for k in count())
    return list(takewhile(lambda index: index < num_frames, centres)) or [num_frames // 2]


def window(num_frames: int, fps: float, bound: Bound | None) -> tuple[int, int]:
    """First and last index of the part to look at, after checking that it lies in the video."""
    if num_frames < 1 or not 0 < fps < math.inf:
        raise VideoError(f"a video of {num_frames} frames at {fps} a second has nothing to look at")
    if bound is not None:
        is_pair = isinstance(bound, tuple | list) and len(bound) == 2
        if not is_pair or not all(isinstance(side, Real) for side in bound):
            raise VideoError(f"bound must be (start, end) in seconds, not {bound!r}")
        start, end = bound
        seconds = num_frames / fps
        if not (0 <= start < end and start < seconds):
            raise VideoError(
                f"bound must satisfy 0 <= start < end and start < {seconds:.2f} s, not {start}, {end}"
            )
    first, last = _window(num_frames, fps, bound)
    return min(first, last), last


def _window(num_frames: int, fps: float, bound: Bound | None) -> tuple[int, int]:
    start, end = bound or (-100_000.0, 100_000.0)
    last = num_frames - 1
    return max(0, round(start * fps)), last if end * fps > last else round(end * fps)
