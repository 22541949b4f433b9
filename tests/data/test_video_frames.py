"""Frames of videos for training."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from internvl.data.video_frames import FEWEST, MOST, Frame, choose_frames, read_frames
from internvl.errors import VideoError
from internvl.processing.clip import VideoLimits
from internvl.processing.frames import choose
from tests.processing.test_video import make_video

LIMITS = VideoLimits()


@pytest.fixture(scope="module")
def mp4() -> bytes:
    return make_video(num_frames=40, fps=10)


def indices(source: object, seed: int = 0, **options: object) -> list[int]:
    found = choose_frames(source, random.Random(seed), LIMITS, **options)  # type: ignore[arg-type]
    assert all(isinstance(frame, Frame) for frame in found)
    return [frame.index for frame in found if isinstance(frame, Frame)]


def test_a_random_frame_of_each_of_8_to_32_parts(mp4: bytes) -> None:
    drawn = [indices(mp4, seed) for seed in range(200)]
    assert {len(one) for one in drawn} == set(range(FEWEST, MOST + 1))
    assert drawn == [indices(mp4, seed) for seed in range(200)]
    assert len({tuple(one) for one in drawn}) > 100
    for one in drawn:
        assert one == sorted(one)
        assert set(one) <= set(range(40))


def test_a_part_in_seconds(mp4: bytes) -> None:
    for seed in range(20):
        assert set(indices(mp4, seed, bound=[1.0, 3.0])) <= set(range(10, 31))
    with pytest.raises(VideoError, match="bound must satisfy"):
        indices(mp4, bound=[5.0, 9.0])
    with pytest.raises(VideoError, match="bound must be"):
        indices(mp4, bound=["a", 9.0])


def test_a_short_video_repeats_its_last_frame() -> None:
    found = indices(make_video(num_frames=4))
    assert len(found) >= FEWEST
    assert found[:4] == [0, 1, 2, 3]
    assert set(found[4:]) == {3}


def test_frames_by_number_and_by_rate(mp4: bytes) -> None:
    assert indices(mp4, num_segments=4) == choose(40, 10, num_segments=4, max_frames=512)
    assert indices(mp4, fps=2) == choose(40, 10, rate=2, max_frames=512)


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    for number in range(12):
        Image.new("RGB", (8, 8)).save(tmp_path / f"frame_{number}.jpg")
    found = choose_frames(tmp_path, random.Random(0), LIMITS)
    assert len(found) >= FEWEST
    assert all(isinstance(one, Path) for one in found)
    numbers = [int(Path(str(one)).stem.split("_")[1]) for one in found]
    assert numbers == sorted(numbers)
    with pytest.raises(VideoError, match="without a frame rate"):
        choose_frames(tmp_path, random.Random(0), LIMITS, bound=(0, 1))


def test_frames_are_decoded_once_each(mp4: bytes) -> None:
    frames = [Frame(mp4, index) for index in (3, 20, 20, 39)]
    found = read_frames(frames, LIMITS)
    assert set(found) == set(frames)
    shades = [np.asarray(found[Frame(mp4, index)])[-1, -1, 0] for index in (3, 20, 39)]
    assert np.allclose(shades, [15, 100, 195], atol=6)


def test_limits_and_damage(mp4: bytes) -> None:
    with pytest.raises(VideoError, match="max_total_pixels=100"):
        read_frames([Frame(mp4, 0)], VideoLimits(max_total_pixels=100))
    with pytest.raises(VideoError):
        indices(mp4[:200])
    with pytest.raises(VideoError, match="cannot read from"):
        indices(np.zeros(3))
