"""Prompt ensembles and accuracies: equal to torchmetrics and scikit-learn on random data."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from sklearn.metrics import average_precision_score, balanced_accuracy_score
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics.functional.classification import multiclass_accuracy

from internvl.errors import InputError
from internvl.evaluation import zero_shot
from internvl.evaluation.prompts import make_prompts, open_prompts
from internvl.evaluation.zero_shot import accuracy, average_precision, class_logits, classifier


def embed(texts: Sequence[str]) -> Tensor:
    """A fixed vector for every text, of any length."""
    rows = []
    for text in texts:
        generator = torch.Generator().manual_seed(sum(map(ord, text)))
        rows.append(torch.randn(8, generator=generator) * (1 + len(text)))
    return torch.stack(rows)


def sample(num: int = 200, num_classes: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels_B = torch.randint(num_classes - 1, (num,), generator=generator)  # the last class never occurs
    logits_BY = torch.randn(num, num_classes, generator=generator)
    logits_BY[torch.arange(num), labels_B] += 1
    return logits_BY, labels_B


def test_a_class_is_the_mean_of_its_directions() -> None:
    prompts = open_prompts("fer2013")
    rows_YE = classifier(embed, prompts, batch=5)
    for index in range(len(prompts)):
        mean_E = normalize(embed(prompts.texts(index)).double(), dim=1).mean(0)
        torch.testing.assert_close(rows_YE[index], mean_E / mean_E.norm())


def test_a_text_is_embedded_once() -> None:
    asked: list[str] = []

    def embed_and_count(texts: Sequence[str]) -> Tensor:
        asked.extend(texts)
        return embed(texts)

    prompts = make_prompts(["cat", "dog", "cat"], ["a {}.", "the {}."])
    rows_YE = classifier(embed_and_count, prompts, batch=3)
    assert asked == ["a cat.", "the cat.", "a dog.", "the dog."]
    assert rows_YE[0].equal(rows_YE[2])


def test_logits_are_cosines_times_a_hundred() -> None:
    images_BE, classes_YE = torch.randn(3, 8) * 5, normalize(torch.randn(4, 8), dim=1)
    expected = 100 * torch.nn.functional.cosine_similarity(images_BE[:, None], classes_YE[None], dim=-1)
    torch.testing.assert_close(class_logits(images_BE, classes_YE).float(), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="do not fit"):
        class_logits(images_BE, classes_YE[:, :7])


@pytest.mark.parametrize("chunk", [7, 4096])
def test_accuracies_are_those_of_torchmetrics_and_scikit_learn(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zero_shot, "CHUNK", chunk)
    logits_BY, labels_B = sample()
    found = accuracy(logits_BY, labels_B)
    for k, ours in ((1, found.acc1), (5, found.acc5)):
        theirs = multiclass_accuracy(logits_BY, labels_B, num_classes=12, average="micro", top_k=k)
        assert ours == pytest.approx(float(theirs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a class was predicted and never occurs
        recall = balanced_accuracy_score(labels_B, logits_BY.argmax(1))
    assert found.mean_per_class == pytest.approx(recall)
    assert found.mean_per_class != found.acc1
    assert found.num_pictures == 200
    assert found.acc5 is not None
    assert found.mean_1_5 == pytest.approx((found.acc1 + found.acc5) / 2)


def test_only_classes_that_compete_count() -> None:
    logits_BY, labels_B = sample()
    among = [8, 2, 5, 3, 7, 9]
    kept = torch.isin(labels_B, torch.tensor(among))
    found = accuracy(logits_BY[kept], labels_B[kept], among)
    narrow = torch.tensor([among.index(int(label)) for label in labels_B[kept]])
    assert found == accuracy(logits_BY[kept][:, among], narrow)
    assert found.acc1 > accuracy(logits_BY[kept], labels_B[kept]).acc1
    with pytest.raises(InputError, match="is a label and does not compete"):
        accuracy(logits_BY, labels_B, among)


def test_classes_that_compete_as_one() -> None:
    """The best of them speaks for all; a label of any is right."""
    logits_BY = torch.tensor([[1.0, 5.0, 2.0, 3.0], [0.0, 1.0, 9.0, 0.0]])
    found = accuracy(logits_BY, [0, 3], among=[[0, 1], 3])
    assert (found.acc1, found.acc5) == (0.5, None)
    assert accuracy(logits_BY, [0, 0], among=[[0, 1], 3]).acc1 == 1.0
    assert accuracy(logits_BY, [0, 3], among=[[0, 1, 1], 3]) == found


def test_several_right_classes() -> None:
    """ImageNet ReaL: any of them is right, pictures without one are left out."""
    logits_BY = torch.tensor([[3.0, 2, 1, 0, 0], [3, 2, 1, 0, 0], [3, 2, 1, 0, 0], [3, 2, 1, 0, 0]])
    found = accuracy(logits_BY, [[1, 0], [1, 2], [], [4]])
    assert (found.num_pictures, found.acc5) == (3, 1.0)
    assert found.acc1 == pytest.approx(1 / 3)
    assert found.mean_per_class is None


def test_equal_logits_count_against_the_model() -> None:
    assert accuracy(torch.zeros(4, 6), [0, 1, 2, 3]).acc1 == 0.0
    images_BE = torch.rand(1, 768).expand(40, -1)
    classes_YE = normalize(torch.rand(1, 768), dim=1).expand(33, -1)
    assert accuracy(class_logits(images_BE, classes_YE), [0] * 40).acc1 == 0.0


@pytest.mark.parametrize("levels", [3, 1000])
def test_average_precision_is_that_of_scikit_learn(levels: int) -> None:
    generator = torch.Generator().manual_seed(1)
    scores_BY = torch.randint(levels, (60, 5), generator=generator).double()  # 3: most of them equal
    is_right_BY = torch.rand(60, 5, generator=generator) < 0.3
    theirs = average_precision_score(is_right_BY.numpy(), scores_BY.numpy(), average="macro")
    assert average_precision(scores_BY, is_right_BY) == pytest.approx(theirs)
    is_right_BY[:, 2] = False
    rest = [0, 1, 3, 4]
    assert average_precision(scores_BY, is_right_BY) == pytest.approx(
        average_precision(scores_BY[:, rest], is_right_BY[:, rest])
    )


@pytest.mark.parametrize(
    ("logits", "labels", "among", "message"),
    [
        (torch.zeros(2, 3), [0], None, "2, 3.*1 labels"),
        (torch.zeros(3), [0, 1, 2], None, "do not fit"),
        (torch.zeros(0, 3), [], None, "no picture has a label"),
        (torch.zeros(1, 3), [[]], None, "no picture has a label"),
        (torch.full((1, 3), torch.nan), [0], None, "NaN"),
        (torch.zeros(1, 3), [3], None, "does not compete"),
        (torch.zeros(1, 3), [-1], None, "does not compete"),
        (torch.zeros(1, 3), [0], [], "some of 0 to 2"),
        (torch.zeros(1, 3), [0], [0, 3], "some of 0 to 2"),
        (torch.zeros(1, 3), [0], [0, []], "none empty"),
        (torch.zeros(1, 3), [0], [2, 0, 1, 0], "class 0 is named in 2 of the entries"),
        (torch.zeros(1, 3), [0], [[0, 1], [1], 2], "class 1 is named in 2 of the entries"),
    ],
)
def test_what_does_not_fit_is_refused(logits: Tensor, labels: Any, among: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        accuracy(logits, labels, among)


def test_average_precision_needs_a_right_class() -> None:
    with pytest.raises(InputError, match="none is right"):
        average_precision(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(InputError, match="NaN"):
        average_precision(torch.full((2, 3), torch.nan), torch.ones(2, 3, dtype=torch.bool))
