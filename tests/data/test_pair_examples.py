"""Pairs of a picture and a caption: what is drawn, what is refused, and what a batch holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from internvl.data.bad_samples import BROKEN
from internvl.data.meta import DataSet, open_data
from internvl.data.pair_examples import PairExamples, clean_caption, image_id
from internvl.errors import InputError
from internvl.processing.texts import TextProcessor
from internvl.processing.tokenizer import load_tokenizer
from tests.conftest import GoldenFixtures
from tests.data.rows import write_jsonl

ROW = {"image": "red.png", "en": ["A red dog.", "Two cats"], "zh": ["在雪地中奔跑的狗。"]}
SIZE = 28


@pytest.fixture(scope="session")
def make(golden_dir: GoldenFixtures) -> Callable[..., PairExamples]:
    tokenizer = load_tokenizer(golden_dir / "internvl_14b")

    def made(max_tokens: int = 80, **options: Any) -> PairExamples:
        return PairExamples(TextProcessor(tokenizer, max_tokens=max_tokens), image_size=SIZE, **options)

    return made


@pytest.fixture
def dataset(tmp_path: Path) -> DataSet:
    pixels = torch.randint(0, 256, (40, 60, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.numpy()).save(tmp_path / "red.png")
    write_jsonl(tmp_path / "rows.jsonl", [ROW])
    return open_data(tmp_path / "rows.jsonl")[0]


def test_a_look_draws_one_caption_in_three_forms(make: Callable[..., PairExamples], dataset: DataSet) -> None:
    maker, seen = make(), Counter[str]()
    processor = maker.texts
    for seed in range(60):
        one = maker.example(ROW, dataset, seed=seed, key="k")
        text = processor.text(one.texts.match)
        seen[text] += 1
        prompt = "Chinese caption:" if text in ROW["zh"] else "English caption:"
        assert one.texts.contrastive == tuple(processor.ids(text))
        assert one.texts.caption[: one.texts.prompt_length] == tuple(processor.prompt(prompt))
        assert processor.text(one.texts.caption) == f"{prompt} {text}"
        assert maker.measure(ROW, dataset, seed=seed) == (
            len(one.texts.contrastive),
            1,
            len(one.texts.contrastive),
        )
    assert set(seen) == {*ROW["en"], *ROW["zh"]}
    assert min(seen.values()) > 8


def test_every_look_has_a_number_of_its_own(make: Callable[..., PairExamples], dataset: DataSet) -> None:
    looks = [(seed, key) for seed in range(4) for key in ("a:0", "a:1")]
    drawn = [make().example(ROW, dataset, seed=seed, key=key).draw for seed, key in looks]
    assert drawn == [make().example(ROW, dataset, seed=seed, key=key).draw for seed, key in looks]
    assert len(set(drawn)) == len(looks)
    assert all(0 <= number < 2**63 for number in drawn)
    assert max(drawn) > 2**61


def test_one_language(make: Callable[..., PairExamples], dataset: DataSet) -> None:
    held = make(language="zh").read(ROW, dataset)
    assert held.captions == {"zh": tuple(ROW["zh"])}
    with pytest.raises(InputError, match="captions in 'ja'"):
        make(language="ja").read(ROW, dataset)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "red.png"}, "1 pictures and no languages"),
        ({"image": ["a.png", "b.png"], "caption": "x"}, "2 pictures"),
        ({"caption": "x"}, "0 pictures"),
        ({"image": "red.png", "captions": ["fine", "  "]}, "a caption is empty"),
        ({"image": "red.png", "caption": "word " * 90}, "the limit is 80"),
    ],
)
def test_what_is_no_pair_is_refused(
    make: Callable[..., PairExamples], dataset: DataSet, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make().measure(row, dataset, seed=0)


def test_cleaned_captions(make: Callable[..., PairExamples], dataset: DataSet) -> None:
    assert clean_caption(' A "dog": it*s  (big) ~ yes; #1! ') == "a dog it s big yes 1"
    assert len(clean_caption("word " * 90).split()) == 50
    held = make(clean=True).read({**ROW, "zh": None}, dataset)
    assert held.captions == {"en": ("a red dog", "two cats")}


def test_augmented_pictures_differ_from_look_to_look(
    make: Callable[..., PairExamples], dataset: DataSet
) -> None:
    from dataclasses import replace

    maker, augmented = make(), replace(dataset, augment=True)
    looks = [maker.example(ROW, augmented, seed=seed, key="k").tile_3HW for seed in (1, 1, 2)]
    assert torch.equal(looks[0], looks[1])
    assert not torch.equal(looks[0], looks[2])


def test_a_name_with_half_a_character_is_a_bad_sample(
    make: Callable[..., PairExamples], dataset: DataSet
) -> None:
    row = {**dataset.source.row(0), "image": "photo \ud83d.png"}
    with pytest.raises(BROKEN):
        make().measure(row, dataset, seed=0)
    with pytest.raises(BROKEN):
        make().example(row, dataset, seed=0, key="a")


def test_pictures_are_named_by_path_or_content(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 2))
    names = [image_id(tmp_path / "a"), image_id(str(tmp_path / "a")), image_id(tmp_path / "b")]
    names += [image_id(b"a"), image_id(image)]
    assert names[0] == names[1]
    assert len(set(names)) == 4
    assert all(0 <= name < 2**63 for name in names)
