"""Recall both ways: equal to torchmetrics, ties against the model, whatever the size of a block."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchmetrics.retrieval import RetrievalHitRate

from internvl.errors import InputError
from internvl.evaluation import retrieval
from internvl.evaluation.retrieval import rank_scores, ranks, recall


def sample(num_images: int, num_texts: int, width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, texts that resemble their picture, and the picture of each text in no order."""
    generator = torch.Generator().manual_seed(0)
    image_of_T = torch.randint(num_images, (num_texts,), generator=generator)
    images_IE = torch.randn(num_images, width, generator=generator)
    texts_TE = images_IE[image_of_T] + torch.randn(num_texts, width, generator=generator)
    return images_IE * 3, texts_TE, image_of_T


def hit_rate(scores_QN: Tensor, is_right_QN: Tensor, k: int) -> float:
    indexes = torch.arange(len(scores_QN))[:, None].expand_as(scores_QN)
    metric = RetrievalHitRate(top_k=k, empty_target_action="skip")
    return float(metric(scores_QN.flatten(), is_right_QN.flatten(), indexes=indexes.flatten()))


@pytest.mark.parametrize("block", [1, 7, 64, 2048])
def test_recall_is_that_of_torchmetrics(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "BLOCK", block)
    images_IE, texts_TE, image_of_T = sample(40, 90)
    cosine_TI = torch.nn.functional.cosine_similarity(texts_TE[:, None], images_IE[None], dim=-1)
    is_right_TI = image_of_T[:, None] == torch.arange(40)
    assert not is_right_TI.any(0).all()  # some pictures have no text
    found = recall(images_IE, texts_TE, image_of_T.tolist(), ks=(1, 3, 10))
    for k in (1, 3, 10):
        assert found.text_to_image[k] == pytest.approx(hit_rate(cosine_TI, is_right_TI, k))
        assert found.image_to_text[k] == pytest.approx(hit_rate(cosine_TI.T, is_right_TI.T, k))
    assert 0 < found.text_to_image[1] < found.text_to_image[10] < 1
    values = [*found.text_to_image.values(), *found.image_to_text.values()]
    assert found.mean == pytest.approx(sum(values) / 6)


def test_a_matrix_of_scores_ranks_alike() -> None:
    images_IE, texts_TE, image_of_T = sample(30, 50)
    cosine_TI = torch.nn.functional.cosine_similarity(texts_TE[:, None], images_IE[None], dim=-1)
    is_right_TI = image_of_T[:, None] == torch.arange(30)
    has_text_I = is_right_TI.any(0)
    found = ranks(images_IE, texts_TE, image_of_T)
    assert found.text_to_image.equal(rank_scores(cosine_TI, is_right_TI))
    assert found.image_to_text.equal(rank_scores(cosine_TI.T[has_text_I], is_right_TI.T[has_text_I]))


@pytest.mark.parametrize("width", [3, 8, 65, 768])
def test_a_model_that_embeds_all_alike_finds_nothing(width: int) -> None:
    images_IE = torch.rand(1, width).expand(33, -1)
    texts_TE = torch.rand(1, width).expand(33, -1)
    found = recall(images_IE, texts_TE, range(33), ks=(1, 32, 33))
    assert found.text_to_image == found.image_to_text == {1: 0.0, 32: 0.0, 33: 1.0}


def test_one_right_text_of_a_picture_is_enough() -> None:
    images_IE = torch.eye(2)
    texts_TE = torch.tensor([[0.9, 1.0], [1.0, 0.1], [0.95, 1.0]])
    found = ranks(images_IE, texts_TE, [0, 0, 1])
    assert found.text_to_image.tolist() == [1, 0, 0]
    assert found.image_to_text.tolist() == [0, 1]


def test_halves_and_directions_do_not_change_ranks() -> None:
    images_IE, texts_TE, image_of_T = sample(20, 20)
    whole = ranks(images_IE, texts_TE, image_of_T)
    half = ranks(images_IE.half() * 2, texts_TE.half() / 2, image_of_T)
    assert (whole.text_to_image != half.text_to_image).sum() <= 2


def test_one_of_each() -> None:
    assert recall(torch.ones(1, 2), torch.ones(1, 2), [0], ks=[1]).mean == 1.0


@pytest.mark.parametrize(
    ("images", "texts", "image_of_text", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), [0, 1], r"got \[\(2, 3\), \(2, 4\), \(2,\)\]"),
        (torch.ones(2, 3), torch.ones(2, 3), [0], "2 texts and 1 pictures"),
        (torch.ones(2, 3), torch.ones(0, 3), [], "at least one"),
        (torch.ones(2, 3), torch.ones(2, 3), [0, 2], "0 to 1"),
        (torch.ones(2, 3), torch.ones(2, 3), [0, -1], "0 to 1"),
        (torch.ones(2, 3), torch.ones(2, 3), [0.0, 1.0], "must be a row"),
        (torch.ones(2, 3), torch.full((2, 3), torch.nan), [0, 1], "NaN"),
        (torch.ones(3), torch.ones(2, 3), [0, 1], "embeddings are"),
    ],
)
def test_what_does_not_fit_is_refused(
    images: Tensor, texts: Tensor, image_of_text: list[int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ranks(images, texts, image_of_text)


def test_k_counts_from_one() -> None:
    for ks in ([], [0], [1, -1]):
        with pytest.raises(InputError, match="at least 1"):
            recall(torch.ones(1, 2), torch.ones(1, 2), [0], ks=ks)


def test_scores_without_a_right_candidate_are_refused() -> None:
    scores_QN, is_right_QN = torch.rand(2, 3), torch.zeros(2, 3, dtype=torch.bool)
    is_right_QN[0, 0] = True
    for scores, marks in [(scores_QN, is_right_QN), (scores_QN * torch.nan, ~is_right_QN)]:
        with pytest.raises(InputError, match="NaN, or a query"):
            rank_scores(scores, marks)
    with pytest.raises(InputError, match="do not fit"):
        rank_scores(scores_QN, is_right_QN[:1])
