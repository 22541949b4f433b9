"""Published tables: their own averages come out, and shipped sets have a row."""

from __future__ import annotations

from statistics import fmean

import pytest

from internvl.evaluation.prompts import shipped_sets
from internvl.evaluation.published import RETRIEVAL, ZERO_SHOT


@pytest.mark.parametrize(
    ("mode", "sets", "average"),
    [
        ("C", ("flickr30k", "coco"), 86.6),
        ("G", ("flickr30k", "coco"), 88.8),
        ("C", ("flickr30k-cn", "coco-cn"), 89.0),
        ("G", ("flickr30k-cn", "coco-cn"), 90.9),
    ],
)
def test_averages_of_retrieval_are_the_published_ones(
    mode: str, sets: tuple[str, ...], average: float
) -> None:
    values = [value for name in sets for value in RETRIEVAL[name][mode].values()]
    assert len(values) == 12
    assert round(fmean(values), 1) == average


@pytest.mark.parametrize(("mode", "average"), [("C", 95.1), ("G", 96.6)])
def test_averages_of_xtd_are_the_published_ones(mode: str, average: float) -> None:
    values = [rows[mode]["image_to_text@10"] for name, rows in RETRIEVAL.items() if name.startswith("xtd-")]
    assert len(values) == 8
    assert fmean(values) == pytest.approx(average, abs=0.051)


def test_averages_of_imagenet_are_the_published_ones() -> None:
    tests = ("imagenet", "imagenet-a", "imagenet-r", "imagenet-v2", "imagenet-sketch", "objectnet")
    assert round(fmean(round(ZERO_SHOT[name]["acc1"], 1) for name in tests), 1) == 82.4
    languages = ("imagenet", "imagenet-zh", "imagenet-ja", "imagenet-ar", "imagenet-it")
    assert round(fmean(round(ZERO_SHOT[name]["acc1"], 1) for name in languages), 1) == 64.0


def test_every_number_is_a_share_in_per_cent() -> None:
    rows = [*ZERO_SHOT.values(), *(row for rows in RETRIEVAL.values() for row in rows.values())]
    values = [value for row in rows for value in row.values()]
    assert all(20 < value <= 100 for value in values)
    assert all(row["acc1"] <= row["acc5"] for row in rows if "acc5" in row)


def test_sets_with_classes_have_a_published_number() -> None:
    assert {name for name in shipped_sets() if name not in ZERO_SHOT} == {"ucf101"}
