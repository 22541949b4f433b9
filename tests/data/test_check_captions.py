"""Every caption of a pair is looked at, and counted by language."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from internvl.data.check import check
from internvl.data.check_captions import CaptionCheck
from internvl.data.meta import open_data
from internvl.data.pair_examples import PairExamples
from internvl.data.spec import Batching, DataSpec
from internvl.processing.texts import TextProcessor
from internvl.processing.tokenizer import load_tokenizer
from tests.conftest import GoldenFixtures
from tests.data.rows import write_jsonl

GOOD = {"image": "a.png", "en": ["one dog", "two dogs run"], "zh": ["狗"]}
LONG = "dog " * 100


@pytest.fixture
def captions(golden_dir: GoldenFixtures) -> CaptionCheck:
    return CaptionCheck(
        PairExamples(TextProcessor(load_tokenizer(golden_dir / "internvl_14b")), image_size=28)
    )


def look(captions: CaptionCheck, folder: Path, rows: list[dict[str, Any]], **options: Any) -> list[str]:
    """The reasons for which rows are bad."""
    Image.new("RGB", (30, 30)).save(folder / "a.png")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:-30])
    write_jsonl(folder / "rows.jsonl", rows)
    spec = DataSpec(batching=Batching(examples=2), workers=3)
    report = check(open_data(folder / "rows.jsonl"), captions, spec, **options)
    return [one.reason for one in report.bad]


def test_languages_are_counted(captions: CaptionCheck, tmp_path: Path) -> None:
    rows = [GOOD, {"image": "a.png", "caption": "three"}, {"image": "a.png", "zh": ["狗", "猫", "鸟"]}]
    assert look(captions, tmp_path, rows * 30) == []
    english, chinese = sorted(captions.languages(), key=lambda one: one.language)
    assert (english.language, english.num_rows, english.num_captions) == ("en", 60, 90)
    assert (chinese.language, chinese.num_rows, chinese.num_captions) == ("zh", 60, 120)
    ids = captions.examples.texts.ids
    counted = [len(ids(text)) for text in ("one dog", "two dogs run", "three")]
    tokens = english.tokens
    assert (tokens.least, tokens.most, tokens.total) == (min(counted), max(counted), 30 * sum(counted))
    assert [one.language for one in captions.languages()] == ["zh", "en"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"image": "a.png", "en": ["one", LONG, "two", "three", "four"]}, "the limit is 80"),
        ({"image": "a.png", "en": ["one"], "zh": ["狗", " "]}, "a caption is empty"),
        ({"image": "a.png", "en": []}, "a pair is one picture"),
        ({"image": ["a.png", "a.png"], "en": ["one"]}, "2 pictures"),
        ({"image": "gone.png", "en": ["one"]}, "no such file"),
        ({"image": "cut.png", "en": ["one"]}, "cut"),
    ],
)
def test_what_no_run_could_use(
    captions: CaptionCheck, tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    (found,) = look(captions, tmp_path, [GOOD, row, GOOD])
    assert reason in found


def test_headers_alone(captions: CaptionCheck, tmp_path: Path) -> None:
    assert look(captions, tmp_path, [{"image": "cut.png", "en": ["one"]}], decode=False) == []
