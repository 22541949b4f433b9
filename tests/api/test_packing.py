"""The loss of packing from what two models saw, by hand; what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from internvl.api.packing import MOST_PICTURES, Loss, _Seen, check, compare, example_pictures, quantize
from internvl.checkpoints.packing import Packing
from internvl.errors import InputError
from internvl.processing.image import load_image

PACKING = Packing(layers={"vit.a": "int8", "vit.b": "int8", "llm.c": "int4"})


def test_loss_of_known_answers() -> None:
    even, lopsided = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    axes_PD, same_PD = torch.eye(2), torch.tensor([[3.0, 0.0], [1.0, 1.0]])  # cosines 1 and 1 / sqrt(2)
    plain = [_Seen(axes_PD, (1,), lopsided), _Seen(axes_PD, (1,), lopsided)]
    packed = [_Seen(axes_PD, (1,), lopsided), _Seen(same_PD, (1,), even)]
    loss = compare(plain, packed)
    assert loss.pictures == 2
    assert loss.vision_cosine == pytest.approx((3 + 0.5**0.5) / 4)
    assert loss.worst_cosine == pytest.approx((1 + 0.5**0.5) / 2)
    assert loss.divergence == pytest.approx((0.25 * math.log(0.5) + 0.75 * math.log(1.5)) / 2)
    assert loss.agreement == pytest.approx(0.5)


def test_a_model_that_does_not_chat() -> None:
    loss = compare([_Seen(torch.eye(2))], [_Seen(torch.eye(2))])
    assert loss.as_json() == {"pictures": 1, "vision_cosine": 1.0, "worst_cosine": 1.0}


@pytest.mark.parametrize("cosine", [0.9989, math.nan])
def test_a_missed_bound(cosine: float) -> None:
    check(Loss(pictures=4, vision_cosine=0.9991, worst_cosine=0.99), PACKING)
    with pytest.raises(InputError, match=r"packed \(2 layers int8, 1 int4\).* below 0.999.*--allow-loss"):
        check(Loss(pictures=4, vision_cosine=cosine, worst_cosine=0.99), PACKING)


def test_example_pictures_come_along() -> None:
    sizes = [load_image(picture).size for picture in example_pictures()]
    assert len(sizes) == 4
    assert all(max(size) == 448 for size in sizes)


def test_too_many_pictures(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"give at most {MOST_PICTURES}"):
        quantize("nano", tmp_path / "out", pictures=example_pictures()[:1] * (MOST_PICTURES + 1))
