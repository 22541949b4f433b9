"""The frames of a video that training sees: a random number of them, one from each equal part.

Frames are chosen from the header and decoded later; those of a question (`show_frames`) are the ones that
chat shows. Knows no tiles and no text.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from internvl.errors import VideoError
from internvl.processing.clip import VideoLimits, opened
from internvl.processing.frames import Bound, choose, interval_indices, window
from internvl.processing.source import describe
from internvl.processing.video import frame_files, is_folder, load_frames

FEWEST, MOST = 8, 32
"""Frames of a video, both included (InternVL training)."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Frame `index` of a video file, not decoded yet."""

    video: Any
    index: int


def choose_frames(
    source: Any,
    draw: random.Random,
    limits: VideoLimits,
    *,
    num_segments: int | None = None,
    fps: float | None = None,
    bound: Bound | None = None,
) -> list[Frame] | list[Path]:
    """Frames in order; pictures of a folder as their paths. Raises VideoError.

    `num_segments` or `fps` choose as inference does. Else 8 to 32 equal parts, a random frame of each; a
    video of fewer frames repeats its last one. `bound` (start, end) in seconds needs a frame rate.
    """
    names: list[Path] = []
    if is_folder(source):
        names = frame_files(Path(source), limits)
        if bound is not None or fps is not None:
            raise VideoError(f"{describe(source)} is a folder without a frame rate: leave out clip and fps")
        num_frames, rate = len(names), 1.0
    else:
        with opened(source, limits) as clip:
            num_frames, rate = clip.info.num_frames, clip.info.fps
    with _refused_sizes(source):
        indices = _indices(num_frames, rate, draw, limits, num_segments, fps, bound)
    return [names[index] for index in indices] if names else [Frame(source, index) for index in indices]


def show_frames(source: Any, *, limits: VideoLimits, **options: Any) -> Sequence[Any]:
    """Frames as chat shows them, decoded; a list is taken as it is. Raises VideoError."""
    if isinstance(source, list | tuple):
        return source
    with _refused_sizes(source):
        return load_frames(source, **options, limits=limits)


@contextmanager
def _refused_sizes(source: Any) -> Iterator[None]:
    try:
        yield
    except OverflowError as reason:
        raise VideoError(
            f"clip, num_segments or fps of {describe(source)} is too large: {reason}"
        ) from reason


def _indices(
    num_frames: int,
    rate: float,
    draw: random.Random,
    limits: VideoLimits,
    num_segments: int | None,
    fps: float | None,
    bound: Bound | None,
) -> list[int]:
    if num_segments is not None or fps is not None:
        most = limits.max_frames
        return choose(num_frames, rate, num_segments=num_segments, rate=fps, bound=bound, max_frames=most)
    first, last = window(num_frames, rate, bound)
    num_picks = draw.randint(FEWEST, MOST)
    picks = interval_indices(last - first + 1, num_picks, "random", seed=draw.getrandbits(32))
    return [first + index for index in picks]


def read_frames(frames: Iterable[Frame], limits: VideoLimits) -> dict[Frame, Image.Image]:
    """Each as upright RGB; every video is opened once. Raises VideoError."""
    wanted: dict[Any, list[Frame]] = defaultdict(list)
    for frame in dict.fromkeys(frames):
        wanted[frame.video].append(frame)
    found: dict[Frame, Image.Image] = {}
    for video, some in wanted.items():
        with opened(video, limits) as clip:
            pixels = clip.info.width * clip.info.height * len(some)
            if pixels > limits.max_total_pixels:
                raise VideoError(
                    f"{len(some)} frames of {clip.name} have {pixels} pixels, the limit is max_total_pixels="
                    f"{limits.max_total_pixels}; shrink the video"
                )
            found |= zip(some, clip.read([frame.index for frame in some]), strict=True)
    return found
