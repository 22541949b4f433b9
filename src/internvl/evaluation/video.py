"""Videos through a model of pictures: the mean of a few frames, then as pictures; dual softmax.

A video's embedding is the mean of its frames' embeddings before the final normalisation (J. Xie et al., 2023,
InternVL, arXiv 2312.14238). Zero-shot classification then is `zero_shot.accuracy`; for Kinetics its
`mean_1_5` is the number in tables. Knows no model and no files. Shape letters: I videos, F frames, T texts,
E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from internvl.errors import InputError
from internvl.evaluation.retrieval import KS, Ranks, Recall, rank_scores, recall

MAX_PAIRS = 1 << 27
"""Scores that dual softmax holds at once, 1 GB; the test set of MSR-VTT has a million."""


def mean_of_frames(frames_FE: Tensor, num_frames: Sequence[int]) -> Tensor:
    """(I, E) of the frames of all videos one after the other, `num_frames[i]` of video i.

    Raises InputError for a video without frames, and if their number is another.
    """
    if not num_frames or min(num_frames) < 1 or sum(num_frames) != len(frames_FE):
        raise InputError(
            f"{len(frames_FE)} frames for {len(num_frames)} videos of {sum(num_frames)} frames in all, "
            "at least one each"
        )
    return torch.stack([part_FE.mean(0) for part_FE in frames_FE.split(list(num_frames))])


def video_recall(
    videos_IE: Tensor,
    texts_TE: Tensor,
    video_of_text: Sequence[int],
    *,
    dual_softmax: bool = False,
    scale: float = 1.0,
    ks: Sequence[int] = KS,
) -> Recall:
    """R@k both ways. Dual softmax weighs each score by how much its candidate prefers this query: the
    softmax, over all queries, of `scale` times the cosines (arXiv 2109.04290; the published script of
    InternVL has scale 1).

    It looks at all queries at once, so its numbers stand beside others of the kind only. Raises InputError
    as `recall`, and for more than `MAX_PAIRS` pairs with dual softmax.
    """
    if not dual_softmax:
        return recall(videos_IE, texts_TE, video_of_text, ks)
    if len(videos_IE) * len(texts_TE) > MAX_PAIRS:
        raise InputError(
            f"dual softmax of {len(videos_IE)} videos and {len(texts_TE)} texts needs all scores at once, "
            f"the limit is {MAX_PAIRS}"
        )
    if len(texts_TE) != len(video_of_text):
        raise InputError(f"{len(texts_TE)} texts and {len(video_of_text)} videos of texts: one for each")
    scores_TI = normalize(texts_TE.cpu().double(), dim=1) @ normalize(videos_IE.cpu().double(), dim=1).T
    is_right_TI = torch.as_tensor(video_of_text)[:, None] == torch.arange(len(videos_IE))
    described_I = is_right_TI.any(0)
    weights_TI = (scale * scores_TI).softmax(0)  # of a video over texts
    weights_IT = (scale * scores_TI.T).softmax(0)  # of a text over videos
    return Ranks(
        text_to_image=rank_scores(scores_TI * weights_TI, is_right_TI),
        image_to_text=rank_scores((scores_TI.T * weights_IT)[described_I], is_right_TI.T[described_I]),
    ).recall(ks)
