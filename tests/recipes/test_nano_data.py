"""nano's mixture from folders and a package of a few records."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from internvl.data.meta import open_data
from internvl.data.spec import DataSpec
from internvl.recipes import nano_data
from internvl.recipes.nano_data import CAPTION, CHINESE, OTHERS, READ, SHORT, tidy, write
from internvl.training.build import build
from internvl.training.build_pairs import build_pairs
from internvl.training.objective_spec import NextToken
from internvl.training.recipe import ModelSpec
from internvl.training.recipe_data import make_examples, make_pairs
from tests.conftest import GoldenFixtures

QUESTIONS = [["is there a red shape?", "yes", 0], ["what color is it?", "red", 0], ["is it blue?", "no", 1]]


def picture() -> bytes:
    data = BytesIO()
    Image.new("RGB", (32, 32), (200, 10, 10)).save(data, "PNG")
    return data.getvalue()


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in rows:
        target = path.parent / row["image"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(picture())


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders as nano's, and a wheel with three questions about two pictures in place of easy-vqa's."""
    folder = tmp_path / "data"
    captions = [
        {
            "image": f"images/{index}.png",
            "en": [f"a dog number {index} runs .", "two dogs , one ball ."],
            "zh": ["狗在跑。", "两只狗。", "一个球。"],
        }
        for index in range(6)
    ]
    write_rows(folder / "flickr8k" / "train.jsonl", captions[:4])
    write_rows(folder / "flickr8k" / "val.jsonl", captions[4:])
    words = [{"image": f"w{index}.png", "text": f"WORD{index}"} for index in range(4)]
    write_rows(folder / "iiit5k" / "train.jsonl", words)
    (tmp_path / "wheel").mkdir()
    wheel = tmp_path / "wheel" / nano_data.QUESTIONS_WHEEL.file
    with zipfile.ZipFile(wheel, "w") as archive:
        for split in ("train", "test"):
            archive.writestr(f"easy_vqa/data/{split}/questions.json", json.dumps(QUESTIONS))
            for number in (0, 1):
                archive.writestr(f"easy_vqa/data/{split}/images/{number}.png", picture())
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(nano_data, "QUESTIONS_WHEEL", replace(nano_data.QUESTIONS_WHEEL, sha256=digest))
    monkeypatch.setattr(nano_data, "NUM_RENDERED", 12)
    return folder


def prepare(data: Path, out: Path) -> Path:
    """The sets of `data` in `out`, where the wheel lies already."""
    (out / "wheels").mkdir(parents=True)
    (wheel,) = (data.parent / "wheel").iterdir()
    (out / "wheels" / wheel.name).write_bytes(wheel.read_bytes())
    write(data, out)
    return out


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_records(data: Path, tmp_path: Path) -> None:
    out = prepare(data, tmp_path / "out")
    english, chinese = rows(out / "captions_en.jsonl"), rows(out / "captions_zh.jsonl")
    assert english[1]["answers"] == ["A dog number 1 runs.", "Two dogs, one ball."]
    assert {row["question"] for row in english} <= {CAPTION, *OTHERS}
    assert chinese[0]["answers"] == ["狗在跑。", "两只狗。"]
    assert {row["question"] for row in chinese} <= set(CHINESE)
    assert len(english) == len(chinese) == 4
    assert [row["question"] for row in rows(out / "captions_val.jsonl")] == [CAPTION] * 2
    pairs = rows(out / "pairs.jsonl")
    assert [row["zh"] for row in pairs] == [["狗在跑。"], ["两只狗。"], ["一个球。"], ["狗在跑。"]]
    assert [len(row["en"]) for row in pairs] == [2] * 4
    assert rows(out / "words.jsonl")[3] == {"image": "w3.png", "question": READ[0], "answers": ["WORD3"]}
    assert rows(out / "shapes_train.jsonl") == [
        {"image": "0.png", "pairs": [["Is there a red shape?", "yes"], ["What color is it?", "red"]]},
        {"image": "1.png", "pairs": [[f"Is it blue?{SHORT}", "no"]]},
    ]


def test_captions_that_agree_come_first() -> None:
    """The odd one out is dropped; of the others the one that shares most words with all is first."""
    photos = [
        {"image": "a", "en": ["a cat sits on a wall", "clouds", "a cat sits on a red wall", "cat on a wall"]},
        {"image": "b", "en": ["two dogs run fast", "two dogs run", "a picture of mine", "two dogs run home"]},
    ]
    found = nano_data.agreed(photos, keep=3)
    assert [set(row["en"]) for row in found] == [
        {"a cat sits on a wall", "a cat sits on a red wall", "cat on a wall"},
        {"two dogs run fast", "two dogs run", "two dogs run home"},
    ]
    assert [row["image"] for row in found] == ["a", "b"]
    assert found[0]["en"][0] == "a cat sits on a wall"
    assert len(photos[0]["en"]) == 4


def test_rendered_text_is_in_the_picture(data: Path, tmp_path: Path) -> None:
    out = prepare(data, tmp_path / "out")
    rendered = rows(out / "rendered.jsonl")
    assert len(rendered) == 12
    assert len({row["answers"][0] for row in rendered}) > 6
    for row in rendered:
        image = Image.open(out / "rendered" / row["image"])
        colours = image.getcolors(1 << 20)
        assert colours is not None
        assert len(colours) > 1, row


def test_photos_come_more_often(data: Path, tmp_path: Path) -> None:
    """With the same captions; everything else four times less often."""
    out = prepare(data, tmp_path / "out")
    agreed, more = (json.loads((out / f"{name}.json").read_text()) for name in ("agreed", "more"))
    assert more.pop("captions_agreed") == agreed.pop("captions_agreed")
    assert len(more) == 4
    assert {name: one | {"repeat_time": 4 * one["repeat_time"]} for name, one in more.items()} == agreed


def test_every_record_makes_an_example(data: Path, tmp_path: Path, golden_dir: GoldenFixtures) -> None:
    out = prepare(data, tmp_path / "out")
    examples = make_examples(
        build(ModelSpec(checkpoint=str(golden_dir / "internvl2_5_qwen2"), max_tiles=1), 0),
        DataSpec(max_length=1024),
        NextToken(),
    )
    names = {"captions": ["captions_en"], "val": ["captions_val", "shapes_test"]}
    others = ["captions_zh", "shapes_train", "words", "rendered"]
    names |= {"all": ["captions_en", *others], "agreed": ["captions_agreed", *others]}
    for meta, expected in names.items():
        datasets = open_data(out / f"{meta}.json")
        assert [dataset.name for dataset in datasets] == expected
        for dataset in datasets:
            for index in range(len(dataset.source)):
                example = examples.example(dataset.source.row(index), dataset, seed=0)
                assert example.size.tiles == 1
                assert all(any(branch.trained) for branch in example.branches)


def test_every_pair_has_its_picture(data: Path, tmp_path: Path, golden_dir: GoldenFixtures) -> None:
    out = prepare(data, tmp_path / "out")
    built = build_pairs(ModelSpec(checkpoint=str(golden_dir / "internvl_14b"), image_size=56), 0)
    pairs = make_pairs(built, DataSpec(meta=str(out / "pairs.json")))
    (dataset,) = open_data(out / "pairs.json")
    for index in range(len(dataset.source)):
        example = pairs.example(dataset.source.row(index), dataset, seed=0, key=str(index))
        assert example.tile_3HW.shape == (3, 56, 56)


def test_the_same_call_writes_the_same_files(data: Path, tmp_path: Path) -> None:
    one, other = prepare(data, tmp_path / "one"), prepare(data, tmp_path / "other")
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(names) > 25
    assert names == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    for name in names:
        text = (one / name).read_bytes().replace(bytes(one), bytes(other))  # metas name their folders
        assert text == (other / name).read_bytes(), name


def test_nothing_is_left_half_written(data: Path, tmp_path: Path) -> None:
    (data / "iiit5k" / "train.jsonl").write_text('{"image": "w0.png", "text": "A"}\n{"image": "w1.png"}\n')
    with pytest.raises(KeyError, match="text"):
        prepare(data, tmp_path / "out")
    assert not (tmp_path / "out" / "words.jsonl").exists()


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a dog runs .", "A dog runs."),
        ("A man 's dog , and a cat .", "A man's dog, and a cat."),
        ("he did n't  move !", "He didn't move."),
        ("no mark", "No mark."),
        (" . ", "."),
    ],
)
def test_tidy_captions(caption: str, expected: str) -> None:
    assert tidy(caption) == expected
