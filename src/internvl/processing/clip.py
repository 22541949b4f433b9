"""One video file: its length and rate from the packet table, and chosen frames decoded (PyAV, extra "video").

Knows no sampling rule. Nothing is decoded before the limits were checked against the header.
"""

from __future__ import annotations

import io
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image

from internvl.errors import VideoError
from internvl.processing.source import Source, check_path, describe, is_path, read_source

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,mpegts,mpeg,flv,asf,ogg"
"""Readers of FFmpeg that are opened at all: none follows references to other files or addresses."""
MAX_PACKETS = 2_000_000
WORTH_A_SEEK = 8
"""Frames to skip from which jumping to a key frame beats decoding on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoLimits:
    """What is read at all. `max_pixels` are those of one frame, `max_total_pixels` of all frames returned."""

    max_bytes: int = 2 * 1024**3
    max_seconds: float = 6 * 3600.0
    max_frames: int = 512
    max_pixels: int = 7680 * 4320
    max_total_pixels: int = 600_000_000
    allow_paths: bool = True
    allow_urls: bool = False
    allow_private_hosts: bool = False
    url_timeout: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """What is known without decoding. `fps` is the average; `width` and `height` are before any rotation."""

    num_frames: int
    fps: float
    width: int
    height: int

    @property
    def seconds(self) -> float:
        return self.num_frames / self.fps


@dataclass(frozen=True, slots=True)
class PacketTable:
    """When each frame is shown, in units of the stream, and which frames can be decoded on their own.

    Some streams give no times; then `is_timed` is false and frames are counted instead.
    """

    times: list[int]
    keys: list[int]
    is_timed: bool


@contextmanager
def opened(source: Source, limits: VideoLimits) -> Iterator[Clip]:
    """A clip whose header and packet table were read and checked. Raises `VideoError`."""
    if isinstance(source, str | os.PathLike) and is_path(source):
        file: BinaryIO = check_path(source, limits, VideoError).open("rb")
    else:
        file = io.BytesIO(read_source(source, limits, VideoError))
    with file:
        yield Clip(file, describe(source), limits)


class Clip:
    """A video file that stays open."""

    def __init__(self, file: BinaryIO, name: str, limits: VideoLimits) -> None:
        self.name = name
        self._file = file
        self._limits = limits
        with _open(file, name) as container:
            stream = _video_stream(container, name)
            width, height = stream.codec_context.width, stream.codec_context.height
            self._check_pixels(width, height)
            self._table = _read_packets(container, stream, name)
            self.info = VideoInfo(
                num_frames=len(self._table.times),
                fps=_average_rate(stream, self._table),
                width=width,
                height=height,
            )
        if self.info.seconds > limits.max_seconds:
            raise VideoError(
                f"{name} lasts {self.info.seconds:.0f} s, the limit is max_seconds={limits.max_seconds:g}"
            )

    def read(self, indices: list[int]) -> list[Image.Image]:
        """The frames of these indices, as upright RGB, in the order asked for; repeats share one picture."""
        import av

        found: dict[int, Image.Image] = {}
        total = 0
        try:
            with _open(self._file, self.name) as container:
                reader = _Reader(container, _video_stream(container, self.name), self._table, self._limits)
                for index in sorted(set(indices)):
                    frame = reader.frame_at(index)
                    if frame is None:
                        raise VideoError(f"{self.name} ends before frame {index} of {self.info.num_frames}")
                    self._check_pixels(frame.width, frame.height)
                    # The header tells the size of the first frame; later ones may be larger.
                    total += frame.width * frame.height
                    check_total(total, len(found) + 1, self.name, self._limits)
                    found[index] = _upright(frame)
        except (av.FFmpegError, IndexError) as reason:
            raise VideoError(
                f"{self.name} is damaged: {len(found)} of {len(set(indices))} frames came ({reason})"
            ) from reason
        return [found[index] for index in indices]

    def _check_pixels(self, width: int, height: int) -> None:
        if width < 1 or height < 1:
            raise VideoError(f"{self.name} has frames of {width} x {height} pixels; it may be cut off")
        if width * height > self._limits.max_pixels:
            raise VideoError(
                f"{self.name} has frames of {width} x {height} = {width * height} pixels,"
                f" the limit is max_pixels={self._limits.max_pixels}"
            )


def check_total(total: int, num_frames: int, name: str, limits: VideoLimits) -> None:
    """Raises `VideoError` for frames of more pixels altogether than `limits` allow."""
    if total > limits.max_total_pixels:
        raise VideoError(
            f"{num_frames} frames of {name} have {total} pixels, the limit is"
            f" max_total_pixels={limits.max_total_pixels}; ask for fewer frames"
        )


class _Reader:
    """Decodes forward; jumps only over enough frames to make a jump worth its cost."""

    def __init__(
        self, container: InputContainer, stream: VideoStream, table: PacketTable, limits: VideoLimits
    ) -> None:
        stream.thread_type = "AUTO"
        stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}
        self._container = container
        self._stream = stream
        self._table = table
        self._frames = container.decode(stream)
        self._time = -1
        self._frame: VideoFrame | None = None

    def frame_at(self, index: int) -> VideoFrame | None:
        """The frame shown at that place, or the last one there is if the stream ends early."""
        target = self._table.times[index] if self._table.is_timed else index
        has_jumped = self._jump(index)
        while self._frame is None or self._time < target:
            has_more = self._advance()
            if has_jumped and (not has_more or self._time > target):
                # This file's key frames are not where its table says: decode it from the beginning.
                self._seek(self._table.times[0])
            elif not has_more:
                break
            has_jumped = False
        return self._frame

    def _jump(self, index: int) -> bool:
        table = self._table
        if not table.is_timed or not table.keys:
            return False
        key = table.keys[max(0, bisect_right(table.keys, index) - 1)]
        here = bisect_left(table.times, self._time) if self._frame is not None else 0
        if key - here <= WORTH_A_SEEK:
            return False
        self._seek(table.times[key])
        return True

    def _seek(self, time: int) -> None:
        self._container.seek(time, stream=self._stream, backward=True)
        self._frames = self._container.decode(self._stream)
        self._frame = None

    def _advance(self) -> bool:
        frame = next(self._frames, None)
        if frame is None:
            return False
        self._frame = frame
        if self._table.is_timed:
            self._time = self._time if frame.pts is None else frame.pts
        else:
            self._time += 1
        return True


def _open(file: BinaryIO, name: str) -> InputContainer:
    try:
        import av
    except ImportError as reason:
        raise VideoError("reading video needs PyAV: pip install 'internvl[video]'") from reason
    file.seek(0)
    try:
        return av.open(file, mode="r", options={"format_whitelist": CONTAINERS}, metadata_errors="replace")
    except (av.FFmpegError, EOFError) as reason:
        raise VideoError(f"{name} is no video that can be read, or is cut off ({reason})") from reason


def _video_stream(container: InputContainer, name: str) -> VideoStream:
    if not container.streams.video:
        raise VideoError(f"{name} ({container.format.name}) holds no video stream")
    stream = container.streams.video[0]
    # PyAV's annotations leave out that a stream nobody can decode has no codec.
    if getattr(stream, "codec_context", None) is None:
        raise VideoError(f"{name} ({container.format.name}) uses a codec this build of FFmpeg cannot decode")
    return stream


def _read_packets(container: InputContainer, stream: VideoStream, name: str) -> PacketTable:
    """Reads the file once without decoding, so that frame k means the k-th shown on every container."""
    import av

    packets: list[tuple[int | None, bool]] = []
    try:
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                packets.append((packet.pts, packet.is_keyframe))
            if len(packets) > MAX_PACKETS:
                raise VideoError(f"{name} has more than {MAX_PACKETS} frames; cut it")
    except (av.FFmpegError, IndexError) as reason:
        # PyAV does not expect streams that begin in the middle of a file; damage looks like them.
        if not packets:
            raise VideoError(f"{name} is damaged or cut off before the first frame ({reason})") from reason
    if not packets:
        raise VideoError(f"{name} holds no frames")
    timed = sorted((time, is_key) for time, is_key in packets if time is not None)
    if len(timed) < len(packets):
        return PacketTable(list(range(len(packets))), [0], False)
    return PacketTable(
        [time for time, _ in timed], [k for k, (_, is_key) in enumerate(timed) if is_key], True
    )


def _average_rate(stream: VideoStream, table: PacketTable) -> float:
    """The rate the container states, else the one its times amount to, else 1."""
    if stream.average_rate:
        return float(stream.average_rate)
    shown = table.times[-1] - table.times[0]
    if table.is_timed and stream.time_base and shown > 0:
        return (len(table.times) - 1) / float(shown * stream.time_base)
    return 1.0


def _upright(frame: VideoFrame) -> Image.Image:
    """Turned as the file says phones were held; other angles than quarter turns do not occur."""
    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    quarters = round(frame.rotation / 90) % 4
    return image.rotate(90 * quarters, expand=True) if quarters else image
