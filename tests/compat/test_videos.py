"""Frames of videos as published scripts choose and read them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from internvl.compat import VideoReader, build_transform, cpu, dynamic_preprocess, get_index, load_video
from internvl.errors import VideoError
from tests.compat.conftest import noise


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """20 frames of 96 x 64 pixels, 10 a second."""
    frames = [noise(96, 64, seed).quantize(64) for seed in range(20)]
    path = tmp_path / "clip.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    return path


def test_indices_of_the_reference(golden_dir: Path) -> None:
    rows = json.loads((golden_dir / "preprocess" / "video.json").read_text(encoding="utf-8"))["get_index"]
    for bound, fps, max_frame, num_segments, expected in rows:
        found = get_index(bound, fps, max_frame, first_idx=0, num_segments=num_segments)
        assert found.tolist() == expected
    assert len(rows) > 20


def test_first_index() -> None:
    assert get_index(None, 25.0, 99, first_idx=50, num_segments=2).tolist() == [62, 86]
    assert get_index((3.0, 10.0), 25.0, 99, first_idx=50, num_segments=1).tolist() == [87]


def test_load_video(video: Path) -> None:
    pixel_values, counts = load_video(str(video), input_size=84, num_segments=4, max_num=1)
    assert pixel_values.shape == (4, 3, 84, 84)
    assert counts == [1, 1, 1, 1]
    _, more = load_video(video, bound=(0.5, 1.5), input_size=84, num_segments=2, max_num=6)
    assert more == [7, 7]


def test_the_loop_of_published_scripts(video: Path) -> None:
    """Reader, indices, tiles and transform by hand give what `load_video` gives."""
    reader = VideoReader(str(video), ctx=cpu(0), num_threads=1)
    fps, max_frame = float(reader.get_avg_fps()), len(reader) - 1
    transform, parts = build_transform(input_size=84), []
    for index in get_index(None, fps, max_frame, first_idx=0, num_segments=3):
        image = Image.fromarray(reader[index].asnumpy()).convert("RGB")
        tiles = dynamic_preprocess(image, image_size=84, use_thumbnail=True, max_num=1)
        parts.append(torch.stack([transform(tile) for tile in tiles]))
    expected, counts = load_video(video, input_size=84, num_segments=3)
    assert torch.equal(torch.cat(parts), expected)
    assert counts == [1, 1, 1]


def test_reader(video: Path) -> None:
    reader = VideoReader(video)
    assert len(reader) == 20
    assert reader.get_avg_fps() == pytest.approx(10.0)
    batch = reader.get_batch([0, 3, -1]).asnumpy()
    assert batch.shape == (3, 64, 96, 3)
    assert np.array_equal(batch[2], reader[19].asnumpy())
    assert reader[0].shape == (64, 96, 3)
    with pytest.raises(VideoError, match="of 20 frames"):
        reader.get_batch([20])


def test_missing_video(tmp_path: Path) -> None:
    with pytest.raises(VideoError):
        load_video(tmp_path / "none.mp4")
    with pytest.raises(VideoError):
        VideoReader(tmp_path / "none.mp4")
