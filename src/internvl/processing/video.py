"""Frames of a video, GIF or folder of pictures as RGB, within limits checked before decoding.

Knows no tiles and no prompts; `frames` decides which frames, `clip` decodes them.
"""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image

from internvl.errors import ImageError, VideoError
from internvl.processing.clip import VideoLimits, check_total, opened
from internvl.processing.frames import Bound, choose
from internvl.processing.image import ImageLimits, load_image
from internvl.processing.source import Source, describe, is_path

__all__ = ["Bound", "VideoLimits", "frame_files", "is_folder", "load_frames"]

FRAME_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


def load_frames(
    source: Source,
    *,
    num_segments: int | None = None,
    fps: float | None = None,
    bound: Bound | None = None,
    max_frames: int | None = None,
    folder_fps: float | None = None,
    limits: VideoLimits | None = None,
) -> list[Image.Image]:
    """Frames in order of time as upright RGB: `num_segments` evenly spread (default 8), or `fps` a second.

    `bound` is (start, end) in seconds. A folder is read as one frame a picture, ordered by the number
    in `_12.jpg` or else naturally; `bound` and `fps` then need its rate `folder_fps`.
    Raises `VideoError` with the numbers.
    """
    limits = limits or VideoLimits()
    most = min(max_frames or limits.max_frames, limits.max_frames)
    if is_folder(source):
        if folder_fps is None and (bound is not None or fps is not None):
            raise VideoError(f"{describe(source)} is a folder without a frame rate: name folder_fps")
        names = frame_files(Path(str(source)), limits)
        rate = folder_fps or 1.0
        indices = choose(len(names), rate, num_segments=num_segments, rate=fps, bound=bound, max_frames=most)
        return _load_folder(names, indices, limits)
    with opened(source, limits) as clip:
        info = clip.info
        indices = choose(
            info.num_frames, info.fps, num_segments=num_segments, rate=fps, bound=bound, max_frames=most
        )
        num_frames = len(set(indices))
        check_total(info.width * info.height * num_frames, num_frames, clip.name, limits)
        return clip.read(indices)


def is_folder(source: object) -> bool:
    """Whether this names a folder, whose pictures are then the frames."""
    try:
        return is_path(source) and Path(str(source)).is_dir()
    except (OSError, ValueError):
        return False


def frame_files(folder: Path, limits: VideoLimits) -> list[Path]:
    """The pictures of a folder in order of time: by the number in `_12.jpg`, or else naturally."""
    if not limits.allow_paths:
        raise VideoError(f"paths are closed here: {describe(folder)}")
    names = [
        path for path in folder.iterdir() if path.suffix.lower() in FRAME_SUFFIXES and path.name[0] != "."
    ]
    if not names:
        raise VideoError(f"{describe(folder)} holds no frames ({', '.join(sorted(FRAME_SUFFIXES))})")
    numbers = [re.search(r"_(\d+)$", path.stem) for path in names]
    if all(numbers):
        return [
            path for _, path in sorted((int(n[1]), path) for n, path in zip(numbers, names, strict=True) if n)
        ]
    return sorted(names, key=lambda path: [part.zfill(20) for part in re.split(r"(\d+)", path.name)])


def _load_folder(names: list[Path], indices: list[int], limits: VideoLimits) -> list[Image.Image]:
    image_limits = ImageLimits(max_pixels=limits.max_pixels)
    frames: dict[int, Image.Image] = {}
    try:
        for index in sorted(set(indices)):
            frames[index] = load_image(names[index], image_limits)
            total = sum(frame.width * frame.height for frame in frames.values())
            check_total(total, len(frames), describe(names[0].parent), limits)
    except ImageError as reason:
        raise VideoError(f"frame {index} of {len(names)}: {reason}") from reason
    return [frames[index] for index in indices]
