"""Decoding: every container, against plain sequential decoding; folders; limits; damage."""

from __future__ import annotations

import base64
import io
import random
import struct
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from internvl.errors import VideoError
from internvl.processing import clip
from internvl.processing.clip import VideoInfo, opened
from internvl.processing.frames import segment_indices
from internvl.processing.video import VideoLimits, load_frames

KINDS = [
    ("libx264", "mp4"), ("mpeg4", "avi"), ("libvpx", "webm"), ("libvpx-vp9", "webm"), ("gif", "gif"),
    ("mpeg4", "mpegts"), ("libx264", "mpegts"), ("libx264", "matroska"),
]  # fmt: skip


def make_video(codec="libx264", container="mp4", num_frames=40, fps=10, size=(64, 48), gop=12) -> bytes:
    """Frame k is grey of brightness 5 * k, with a corner that is always bright."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        stream.gop_size = gop
        for k in range(num_frames):
            pixels = np.full((size[1], size[0], 3), 5 * k, np.uint8)
            pixels[: size[1] // 3, : size[0] // 4] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=stream.pix_fmt)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


@pytest.fixture(scope="module")
def mp4() -> bytes:
    return make_video()


def read_header(content: bytes) -> VideoInfo:
    with opened(content, VideoLimits()) as clip:
        return clip.info


def all_frames(content: bytes) -> list[np.ndarray]:
    with av.open(io.BytesIO(content)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize(("codec", "container"), KINDS)
def test_frames_equal_sequential_decoding(codec, container):
    content = make_video(codec, container)
    reference = all_frames(content)
    assert len(reference) == 40
    info = read_header(content)
    assert (info.num_frames, info.width, info.height) == (40, 64, 48)
    assert info.fps == pytest.approx(10)
    assert info.seconds == pytest.approx(4)
    for num_segments in (1, 3, 8, 64):
        frames = load_frames(content, num_segments=num_segments)
        expected = segment_indices(40, info.fps, num_segments)
        assert len(frames) == num_segments
        for index, frame in zip(expected, frames, strict=True):
            np.testing.assert_array_equal(np.asarray(frame), reference[index], err_msg=f"{index}")


@pytest.mark.parametrize("gop", [1, 5, 40, 200])
def test_jumping_equals_decoding_on(gop, monkeypatch):
    content = make_video(num_frames=51, gop=gop)
    reference = all_frames(content)
    for worth in (0, 8, 10_000):
        monkeypatch.setattr(clip, "WORTH_A_SEEK", worth)
        for indices in ([50], [0, 50], [7, 8, 30, 31, 49], [40, 3, 3, 12]):
            with clip.opened(content, VideoLimits()) as opened:
                for index, frame in zip(indices, opened.read(indices), strict=True):
                    np.testing.assert_array_equal(np.asarray(frame), reference[index])


def test_jumping_decodes_less(monkeypatch):
    content = make_video(num_frames=51, gop=5)
    decoded = []
    advance = clip._Reader._advance
    monkeypatch.setattr(clip._Reader, "_advance", lambda reader: decoded.append(1) or advance(reader))
    with clip.opened(content, VideoLimits()) as opened:
        opened.read([48])
    assert len(decoded) <= 5


def test_streams_without_times_are_counted(mp4, monkeypatch):
    reference = all_frames(mp4)
    read_packets = clip._read_packets

    def untimed(*arguments):
        return clip.PacketTable(list(range(len(read_packets(*arguments).times))), [0], False)

    monkeypatch.setattr(clip, "_read_packets", untimed)
    for index, frame in zip(segment_indices(40, 10.0, 5), load_frames(mp4, num_segments=5), strict=True):
        np.testing.assert_array_equal(np.asarray(frame), reference[index])


def test_wrong_key_frames_in_the_table_are_survived(mp4, monkeypatch):
    reference = all_frames(mp4)
    read_packets = clip._read_packets
    monkeypatch.setattr(
        clip, "_read_packets", lambda *a: clip.PacketTable(read_packets(*a).times, list(range(40)), True)
    )
    for index, frame in zip(segment_indices(40, 10.0, 3), load_frames(mp4, num_segments=3), strict=True):
        np.testing.assert_array_equal(np.asarray(frame), reference[index])


def test_every_source_gives_the_same_frames(mp4, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(mp4)
    url = "data:video/mp4;base64," + base64.b64encode(mp4).decode()
    expected = [frame.tobytes() for frame in load_frames(mp4, num_segments=2)]
    for source in (path, str(path), bytearray(mp4), io.BytesIO(mp4), url):
        assert [frame.tobytes() for frame in load_frames(source, num_segments=2)] == expected


def test_bound_rate_and_cap(mp4):
    def brightness(**request) -> list[int]:
        return [round(frame.getpixel((60, 40))[0] / 5) for frame in load_frames(mp4, **request)]

    assert brightness(num_segments=2, bound=(1.0, 3.0)) == [15, 25]
    assert brightness(fps=2) == [2, 7, 12, 17, 22, 27, 32, 37]
    assert brightness(fps=10, max_frames=4) == [5, 15, 25, 35]


@pytest.mark.parametrize(
    ("matrix", "size", "bright_corner"),
    [
        ((0, 1, 0, -1, 0, 0, 48, 0), (48, 64), (47, 0)),
        ((0, -1, 0, 1, 0, 0, 0, 64), (48, 64), (0, 63)),
        ((-1, 0, 0, 0, -1, 0, 64, 48), (64, 48), (63, 47)),
    ],
)
def test_phones_held_sideways_are_turned_upright(mp4, matrix, size, bright_corner):
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", *(value << 16 for value in matrix), 1 << 30)
    start = mp4.index(identity, mp4.index(b"tkhd"))
    (frame,) = load_frames(mp4[:start] + turned + mp4[start + len(turned) :], num_segments=1)
    assert frame.size == size
    assert frame.getpixel(bright_corner)[0] > 200
    corners = {(0, 0), (size[0] - 1, 0), (0, size[1] - 1), (size[0] - 1, size[1] - 1)} - {bright_corner}
    assert all(frame.getpixel(corner)[0] < 200 for corner in corners)


def write_frames(folder: Path, names: list[str]) -> None:
    for k, name in enumerate(names):
        Image.new("RGB", (8, 6), (10 * k, 0, 0)).save(folder / name)


@pytest.mark.parametrize(
    "names",
    [
        [f"img_{k}.png" for k in (1, 2, 10, 11, 100)],
        [f"b{9 - k}_{k:05d}.png" for k in range(5)],
        ["1.png", "2.png", "10.png", "11.png", "a.png"],
        ["shot 2.png", "shot 10.png", "shot 10b.png", "shot 011.png", "shotx.png"],
    ],
)
def test_folders_are_ordered_by_number(names, tmp_path):
    write_frames(tmp_path, names)
    (tmp_path / "notes.txt").write_text("not a frame")
    (tmp_path / ".hidden_0.png").write_bytes(b"not a frame")
    frames = load_frames(tmp_path, num_segments=5)
    # Segments of a five-frame folder repeat frames, so each frame is asked for by time.
    assert [frame.getpixel((0, 0))[0] for frame in load_frames(tmp_path, fps=1, folder_fps=1)] == [
        0,
        10,
        20,
        30,
        40,
    ]
    assert len(frames) == 5
    assert len(load_frames(f"{tmp_path}/", num_segments=2)) == 2


def test_folders_with_a_rate(tmp_path):
    write_frames(tmp_path, [f"f_{k}.png" for k in range(20)])
    frames = load_frames(tmp_path, num_segments=2, bound=(1.0, 3.0), folder_fps=5.0)
    assert [frame.getpixel((0, 0))[0] // 10 for frame in frames] == [7, 12]
    for request in ({"bound": (0.0, 1.0)}, {"fps": 2.0}):
        with pytest.raises(VideoError, match="name folder_fps"):
            load_frames(tmp_path, **request)


def test_bad_folders(tmp_path):
    with pytest.raises(VideoError, match="holds no frames"):
        load_frames(tmp_path)
    (tmp_path / "f_1.png").write_bytes(b"broken")
    with pytest.raises(VideoError, match=r"frame 0 of 1: .*f_1\.png"):
        load_frames(tmp_path)
    with pytest.raises(VideoError, match="paths are closed"):
        load_frames(tmp_path, limits=VideoLimits(allow_paths=False))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (VideoLimits(max_bytes=100), "limit is max_bytes=100"),
        (VideoLimits(max_seconds=3.5), r"lasts 4 s, the limit is max_seconds=3\.5"),
        (VideoLimits(max_pixels=3071), "64 x 48 = 3072 pixels, the limit is max_pixels=3071"),
        (VideoLimits(max_total_pixels=3072 * 8 - 1), "8 frames of .* have 24576 pixels"),
        (VideoLimits(max_frames=7), r"num_segments must lie in 1\.\.7"),
    ],
)
def test_limits_are_checked_before_decoding(mp4, limits, message, monkeypatch):
    monkeypatch.setattr(clip._Reader, "_advance", lambda reader: pytest.fail("a frame was decoded"))
    with pytest.raises(VideoError, match=message):
        load_frames(mp4, limits=limits)


def test_frames_that_grow_are_limited_together():
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as output:
        stream = output.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for k in range(8):
            picture = io.BytesIO()
            Image.new("RGB", (64, 48) if k < 4 else (400, 300)).save(picture, "JPEG")
            packet = av.Packet(picture.getvalue())
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, k, k, True
            packet.time_base = Fraction(1)
            output.mux(packet)
    frames = {id(frame): frame.size for frame in load_frames(file.getvalue())}
    assert set(frames.values()) == {(64, 48), (400, 300)}
    total = sum(width * height for width, height in frames.values())
    load_frames(file.getvalue(), limits=VideoLimits(max_total_pixels=total))
    with pytest.raises(VideoError, match=f"{len(frames)} frames of .* have {total} pixels, the limit is"):
        load_frames(file.getvalue(), limits=VideoLimits(max_total_pixels=total - 1))


def test_folder_frames_are_limited(tmp_path):
    write_frames(tmp_path, [f"f_{k}.png" for k in range(3)])
    with pytest.raises(VideoError, match="max_pixels=47"):
        load_frames(tmp_path, limits=VideoLimits(max_pixels=47))
    with pytest.raises(
        VideoError, match=r"\d frames of .* have 144 pixels, the limit is max_total_pixels=100"
    ):
        load_frames(tmp_path, limits=VideoLimits(max_total_pixels=100))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/nowhere/a.mp4", "no such file"),
        (b"", "empty"),
        (b"not a video at all", "no video that can be read"),
        ("https://example.org/a.mp4", "allow_urls"),
        (b"#EXTM3U\n#EXTINF:3,\n/etc/passwd\n#EXT-X-ENDLIST\n", "no video that can be read"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "no video that can be read"),
    ],
)
def test_no_videos(source, message):
    with pytest.raises(VideoError, match=message):
        load_frames(source)


def test_only_known_containers_are_opened(mp4, monkeypatch):
    monkeypatch.setattr(clip, "CONTAINERS", "matroska")
    with pytest.raises(VideoError, match="no video that can be read"):
        load_frames(mp4)


def test_sound_alone_is_no_video():
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("flac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = 8000, 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    with pytest.raises(VideoError, match="no video stream"):
        load_frames(file.getvalue())


def test_truncated_videos(mp4):
    with pytest.raises(VideoError, match=r"cut off"):
        load_frames(mp4[: len(mp4) // 2])
    webm = make_video("libvpx", "webm")
    half = webm[: len(webm) // 2]
    assert read_header(half).num_frames < 40
    assert len(load_frames(half, num_segments=4)) == 4


@pytest.mark.parametrize("container", ["mp4", "matroska", "gif", "mpegts"])
def test_damaged_videos_never_raise_anything_else(container):
    content = make_video("gif" if container == "gif" else "libx264", container, num_frames=12)
    generator, outcomes = random.Random(container), set()
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(generator.choice((1, 5, 40))):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        try:
            frames = load_frames(bytes(damaged), num_segments=3, limits=VideoLimits(max_pixels=100_000))
        except VideoError:
            outcomes.add("refused")
        else:
            assert all(frame.mode == "RGB" for frame in frames)
            outcomes.add("read")
    assert outcomes == {"refused", "read"}


def test_without_pyav_the_extra_is_named(mp4, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(VideoError, match=r"pip install 'internvl\[video\]'"):
        load_frames(mp4)


def test_files_are_closed(mp4, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(mp4)
    with clip.opened(path, VideoLimits()) as opened:
        file = opened._file
    assert file.closed
