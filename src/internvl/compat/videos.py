"""The video functions of published scripts, and the two names they take from `decord`.

Frames are chosen by `processing.frames` and decoded by `processing.clip` (extra "video").
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from internvl.config import TilingConfig
from internvl.errors import VideoError
from internvl.processing.clip import VideoLimits, opened
from internvl.processing.frames import Bound, segment_indices
from internvl.processing.source import Source
from internvl.processing.tiles import prepare
from internvl.processing.video import load_frames


def get_index(
    bound: Bound | None, fps: float, max_frame: int, first_idx: int = 0, num_segments: int = 32
) -> NDArray[np.int64]:
    """One frame near the middle of each of `num_segments` equal parts, up to index `max_frame`.

    `bound` is (start, end) in seconds (InternVL inference rule).
    """
    if first_idx > 0:
        start, end = bound or (-100_000.0, 100_000.0)
        bound = (max(start, first_idx / fps), end)
    return np.array(segment_indices(max_frame + 1, fps, num_segments, bound))


def load_video(
    video_path: Source,
    bound: Bound | None = None,
    input_size: int = 448,
    max_num: int = 1,
    num_segments: int = 32,
) -> tuple[Tensor, list[int]]:
    """Tiles (N, 3, S, S) of `num_segments` frames, and how many each frame has. Raises VideoError.

    Besides video files, GIFs and folders of frames are read.
    """
    tiling = TilingConfig(tile_size=input_size, max_tiles=max_num)
    frames = load_frames(video_path, num_segments=num_segments, bound=bound)
    parts = [prepare(frame, tiling).tiles_N3HW for frame in frames]
    return torch.cat(parts), [len(part) for part in parts]


@dataclass(frozen=True, slots=True)
class Frames:
    """One frame (H, W, 3) or several (N, H, W, 3), RGB of 0..255."""

    pixels: NDArray[np.uint8]

    def asnumpy(self) -> NDArray[np.uint8]:
        return self.pixels

    @property
    def shape(self) -> tuple[int, ...]:
        return self.pixels.shape


class VideoReader:
    """Frames of a video file by index. Raises VideoError for files that cannot be read."""

    def __init__(self, uri: Source, ctx: object = None, num_threads: int = 0) -> None:
        """`ctx` and `num_threads` change nothing: frames are decoded here, on the CPU."""
        stack = ExitStack()
        self._clip = stack.enter_context(opened(uri, VideoLimits()))
        self._close = weakref.finalize(self, stack.close)

    def __len__(self) -> int:
        return self._clip.info.num_frames

    def get_avg_fps(self) -> float:
        return self._clip.info.fps

    def __getitem__(self, index: Any) -> Frames:
        (frame,) = self._read([index])
        return Frames(np.asarray(frame))

    def get_batch(self, indices: Iterable[Any]) -> Frames:
        return Frames(np.stack([np.asarray(frame) for frame in self._read(indices)]))

    def _read(self, indices: Iterable[Any]) -> list[Image.Image]:
        wanted = [int(index) + (len(self) if index < 0 else 0) for index in indices]
        if not all(0 <= index < len(self) for index in wanted):
            raise VideoError(f"frames {wanted} of a video of {len(self)} frames: count from 0")
        return self._clip.read(wanted)


def cpu(device_id: int = 0) -> str:
    """`decord.cpu`: where frames are decoded."""
    return f"cpu:{device_id}"
