"""Means of frames, and dual softmax against its formula."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from internvl.errors import InputError
from internvl.evaluation import video
from internvl.evaluation.retrieval import recall
from internvl.evaluation.video import mean_of_frames, video_recall


def test_a_video_is_the_mean_of_its_frames() -> None:
    frames_FE = torch.arange(12.0).view(6, 2)
    assert mean_of_frames(frames_FE, [1, 3, 2]).tolist() == [[0, 1], [4, 5], [9, 10]]


@pytest.mark.parametrize("counts", [[], [6, 0], [5], [7]])
def test_frames_must_be_shared_out(counts: list[int]) -> None:
    with pytest.raises(InputError, match="6 frames for"):
        mean_of_frames(torch.zeros(6, 2), counts)


def test_without_dual_softmax_it_is_recall() -> None:
    videos_IE, texts_TE = torch.randn(9, 4), torch.randn(9, 4)
    assert video_recall(videos_IE, texts_TE, range(9)) == recall(videos_IE, texts_TE, range(9))


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_dual_softmax_is_its_formula(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    videos_IE = torch.randn(40, 4, generator=generator)
    texts_TE = videos_IE + torch.randn(40, 4, generator=generator)
    cosines = normalize(texts_TE.double(), dim=1) @ normalize(videos_IE.double(), dim=1).T
    to_video = cosines * (scale * cosines).softmax(dim=0)
    to_text = cosines.T * (scale * cosines.T).softmax(dim=0)
    found = video_recall(videos_IE, texts_TE, range(40), dual_softmax=True, scale=scale)
    for scores, shares in ((to_video, found.text_to_image), (to_text, found.image_to_text)):
        for k in (1, 5, 10):
            is_found = [place in scores[place].topk(k).indices for place in range(40)]
            assert shares[k] == pytest.approx(sum(is_found) / 40)
    assert found.text_to_image != recall(videos_IE, texts_TE, range(40)).text_to_image


def test_videos_with_several_texts_or_none() -> None:
    videos_IE = torch.eye(3)
    found = video_recall(videos_IE, videos_IE[[0, 0, 1]], [0, 0, 1], dual_softmax=True, ks=[1])
    assert found.mean == 1.0


def test_dual_softmax_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_PAIRS", 10)
    with pytest.raises(InputError, match="4 videos and 3 texts needs all scores at once, the limit is 10"):
        video_recall(torch.ones(4, 2), torch.ones(3, 2), [0, 1, 2], dual_softmax=True)
    with pytest.raises(InputError, match="3 texts and 2 videos"):
        video_recall(torch.ones(2, 2), torch.ones(3, 2), [0, 1], dual_softmax=True)
