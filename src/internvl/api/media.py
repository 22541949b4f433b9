"""Videos and documents of a request, read under the model's limits; and where their pictures go.

Knows no model. Pictures themselves are read later, by the processor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from internvl.errors import PromptError
from internvl.processing.clip import VideoLimits
from internvl.processing.conversation import IMAGE_MARK, Picture, label_frame, label_picture
from internvl.processing.document import DocumentLimits, load_pages
from internvl.processing.image import ImageLimits
from internvl.processing.tiling import TileChoice
from internvl.processing.video import load_frames

VIDEO_MARK = "<video>"


@dataclass(frozen=True, slots=True)
class MediaReader:
    """Reads with a request's options. Where from is as open as for pictures; a list is taken as it is."""

    limits: ImageLimits
    video_options: Mapping[str, Any]
    document_options: Mapping[str, Any]

    def frames(self, source: Any, **own: Any) -> Sequence[Any]:
        """Pictures of a video; `own` options of one video win."""
        if isinstance(source, list | tuple):
            return source
        limits = VideoLimits(**self._openings)
        return load_frames(source, **{**self.video_options, **own}, limits=limits)

    def pages(self, source: Any, **own: Any) -> Sequence[Any]:
        """Pictures of a PDF; `own` options of one document win."""
        if isinstance(source, list | tuple):
            return source
        limits = DocumentLimits(**self._openings)
        return load_pages(source, **{**self.document_options, **own}, limits=limits)

    @property
    def _openings(self) -> dict[str, Any]:
        names = ("allow_paths", "allow_urls", "allow_private_hosts")
        return {name: getattr(self.limits, name) for name in names}


def lay_out(
    text: str, pictures: Sequence[Picture], clips: Sequence[Sequence[Picture]], frame_label: str
) -> tuple[str, list[Picture]]:
    """Text in which every `<video>` became its frames, and all pictures in the order of their marks.

    What has no mark is put in front: pictures first, then videos. Raises PromptError when videos and their
    marks disagree in number; pictures are counted by whoever fills their marks.
    """
    num_marks = text.count(VIDEO_MARK)
    if num_marks == 0:
        text, num_marks = VIDEO_MARK * len(clips) + text, len(clips)
    if num_marks != len(clips):
        raise PromptError(
            f"{num_marks} {VIDEO_MARK} marks, but {len(clips)} videos: one for each, or no mark at all"
        )
    if pictures and IMAGE_MARK not in text:
        labels = [label_picture(k, len(pictures)) for k in range(1, len(pictures) + 1)]
        text = "".join(f"{label}{IMAGE_MARK}\n" for label in labels) + text
    waiting, following = iter(pictures), iter(clips)
    pieces: list[str] = []
    ordered: list[Picture] = []
    for piece in re.split(f"({IMAGE_MARK}|{VIDEO_MARK}\n?)", text):
        if piece.startswith(VIDEO_MARK):
            clip = next(following)
            ordered += clip
            pieces += [f"{label_frame(frame_label, k)}{IMAGE_MARK}\n" for k in range(1, len(clip) + 1)]
        else:
            ordered += islice(waiting, piece == IMAGE_MARK)
            pieces.append(piece)
    return "".join(pieces), [*ordered, *waiting]


def as_frames(clip: Sequence[Any], max_tiles: int) -> list[Picture]:
    return [Picture(frame, TileChoice(max_tiles=max_tiles)) for frame in clip]
