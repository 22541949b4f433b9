"""Which frames are looked at: the reference's indices, and requests that make no sense."""

from __future__ import annotations

import json
import math

import pytest

from internvl.errors import VideoError
from internvl.processing.frames import choose, interval_indices, rate_indices, segment_indices, window


@pytest.fixture(scope="module")
def expected(golden_dir):
    return json.loads((golden_dir / "preprocess" / "video.json").read_text(encoding="utf-8"))


def test_golden_segments(expected):
    for bound, fps, max_frame, num_segments, indices in expected["get_index"]:
        assert segment_indices(max_frame + 1, fps, num_segments, bound and tuple(bound)) == indices


def test_golden_training_samplers(expected):
    for case in expected["get_frame_indices"]:
        if case["sample"] == "middle":
            found = interval_indices(case["vlen"], case["num_frames"], "middle")
        else:
            rate = float(case["sample"].removeprefix("fps"))
            found = rate_indices(case["vlen"], case["input_fps"], rate, case["num_frames"])
        assert found == case["indices"], case


def test_segments_round_half_to_even():
    # Ten frames in four segments: 9 / 4 = 2.25, so k * 2.25 is 0, 2.25, 4.5 -> 4, 6.75.
    assert segment_indices(10, 25.0, 4) == [1, 3, 5, 8]


def test_random_picks_stay_in_their_interval_and_follow_the_seed():
    draws = [interval_indices(40, 4, "random", seed) for seed in range(200)]
    for indices in draws:
        assert all(10 * k <= index < 10 * k + 9 for k, index in enumerate(indices))
    assert len({tuple(indices) for indices in draws}) > 100
    assert {indices[0] for indices in draws} == set(range(9))
    assert interval_indices(40, 4, "random", 7) == interval_indices(40, 4, "random", 7)


def test_random_picks_of_short_videos_are_sorted_and_distinct():
    for seed in range(50):
        indices = interval_indices(5, 4, "random", seed)
        assert indices == sorted(set(indices))
        assert len(indices) == 4
    assert interval_indices(3, 5, "random", 0) == [0, 1, 2, 2, 2]


def test_fixed_offset():
    assert interval_indices(40, 4, 3) == [3, 13, 23, 33]
    assert interval_indices(3, 5, 1) == [1, 2, 2, 2, 2]


@pytest.mark.parametrize(("num_frames", "count"), [(0, 4), (4, 0)])
def test_nothing_to_pick_from(num_frames, count):
    with pytest.raises(VideoError, match=f"{count} frames of {num_frames}"):
        interval_indices(num_frames, count)


def test_eight_segments_unless_told():
    assert choose(80, 10.0, max_frames=64) == segment_indices(80, 10.0, 8) == [4, 14, 24, 34, 44, 53, 63, 73]


def test_a_bound_limits_the_frames():
    indices = choose(100, 10.0, num_segments=4, bound=(2.0, 4.0), max_frames=64)
    assert indices == [22, 27, 32, 37]
    assert choose(100, 10.0, rate=1.0, bound=(2.0, 4.9), max_frames=64) == [25, 35, 45]
    assert choose(100, 10.0, num_segments=2, bound=(9.96, 1e9), max_frames=64) == [99, 99]
    assert max(choose(100, 10.0, num_segments=9, bound=(9.0, math.inf), max_frames=64)) <= 99


def test_a_rate_is_thinned_evenly_over_the_whole_video():
    assert choose(100, 10.0, rate=2.0, max_frames=64) == list(range(2, 100, 5))
    thinned = choose(1000, 10.0, rate=10.0, max_frames=10)
    assert thinned == [50 + 100 * k for k in range(10)]


def test_a_rate_above_the_videos_gives_every_frame_once():
    assert choose(10, 5.0, rate=60.0, max_frames=64) == list(range(10))


def test_a_rate_that_gives_nothing_gives_the_middle():
    assert choose(5, 24.0, rate=0.5, max_frames=64) == [2]
    assert choose(5, 24.0, rate=5e-324, max_frames=64) == [2]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"num_segments": 4, "rate": 1.0}, "not both"),
        ({"num_segments": 0}, r"1\.\.64 \(max_frames\), not 0"),
        ({"num_segments": 65}, r"1\.\.64 \(max_frames\), not 65"),
        ({"rate": 0.0}, "positive number, not 0"),
        ({"rate": math.nan}, "positive number, not nan"),
        ({"rate": math.inf}, "positive number, not inf"),
        ({"bound": (5.0, 4.0)}, "not 5.0, 4.0"),
        ({"bound": (-1.0, 4.0)}, "not -1.0"),
        ({"bound": (10.0, 12.0)}, r"start < 10\.00 s"),
        ({"bound": (math.nan, 4.0)}, "not nan"),
        ({"bound": (1.0, math.nan)}, "nan"),
        ({"num_segments": "3"}, "not '3'"),
        ({"num_segments": 2.5}, "not 2.5"),
        ({"rate": "2"}, "positive number, not '2'"),
        ({"bound": 5}, r"\(start, end\) in seconds, not 5"),
        ({"bound": "ab"}, "not 'ab'"),
        ({"bound": ("0", "1")}, r"not \('0', '1'\)"),
        ({"bound": [0, 1, 2]}, r"not \[0, 1, 2\]"),
    ],
)
def test_requests_that_make_no_sense(request_, message):
    with pytest.raises(VideoError, match=message):
        choose(100, 10.0, max_frames=64, **request_)


@pytest.mark.parametrize(("num_frames", "fps"), [(0, 10.0), (10, 0.0), (10, math.nan), (10, math.inf)])
def test_videos_without_frames_or_rate(num_frames, fps):
    with pytest.raises(VideoError, match="nothing to look at"):
        window(num_frames, fps, None)
