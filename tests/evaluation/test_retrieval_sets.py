"""Retrieval sets in every layout: the same pictures and texts in order, or the place of an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from internvl.errors import InputError
from internvl.evaluation.retrieval_sets import RetrievalSet, read_retrieval_set

NAMES = ("a.jpg", "b, c.jpg", "3.jpg")
TEXTS = (("a dog .", "two dogs, one ball"), ("a cat",), ("a tree", "leaves", "green"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "images" / name).touch()
    return tmp_path


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    path.write_text(text, encoding="utf-8")
    return path


def karpathy() -> dict[str, Any]:
    rows = [
        {"filename": name, "split": "test", "sentences": [{"raw": text} for text in texts]}
        for name, texts in zip(NAMES, TEXTS, strict=True)
    ]
    return {"images": [{"filename": "x.jpg", "split": "train", "sentences": [{"raw": "x"}]}, *rows]}


def coco() -> dict[str, Any]:
    return {
        "images": [{"id": 7 - place, "file_name": name} for place, name in enumerate(NAMES)],
        "annotations": [
            {"image_id": 7 - place, "caption": text} for place, texts in enumerate(TEXTS) for text in texts
        ],
    }


def check(found: RetrievalSet, root: Path) -> None:
    assert found.files == tuple(root / "images" / name for name in NAMES)
    assert found.texts == tuple(text for texts in TEXTS for text in texts)
    assert found.image_of_text == (0, 0, 1, 2, 2, 2)


FORMS: dict[str, Any] = {
    "dataset_flickr30k.json": karpathy(),
    "coco_test_karpathy.json": coco(),
    "flickr30k_test_karpathy.txt": "image,caption\n"
    + "".join(f"{name},{text}\n" for name, texts in zip(NAMES, TEXTS, strict=True) for text in texts),
    "captions.txt": "".join(
        f"{name}#{place}\t{text}\r\n"
        for name, texts in zip(NAMES, TEXTS, strict=True)
        for place, text in enumerate(texts)
    ),
    "rows.json": [{"image": name, "caption": list(texts)} for name, texts in zip(NAMES, TEXTS, strict=True)],
    "rows.jsonl": "".join(
        json.dumps({"image": name, "en": texts}) + "\n\n" for name, texts in zip(NAMES, TEXTS, strict=True)
    ),
    "one_a_row.jsonl": "".join(
        json.dumps({"file_name": name, "text": text}) + "\n"
        for name, texts in zip(NAMES, TEXTS, strict=True)
        for text in texts
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_the_same_set(root: Path, name: str) -> None:
    check(read_retrieval_set(write(root / name, FORMS[name])), root)


@pytest.mark.parametrize("name", ["dataset_flickr30k.json", "coco_test_karpathy.json"])
@pytest.mark.parametrize("place", ["", "annotations"])
def test_a_folder_is_its_usual_file(root: Path, name: str, place: str) -> None:
    write(root / place / name, FORMS[name])
    write(root / "flickr30k_cn_test.txt", "a.jpg,一只狗\n")
    check(read_retrieval_set(root), root)
    assert read_retrieval_set(root, language="cn").texts == ("一只狗",)
    assert read_retrieval_set(root, language="zh").files == (root / "images" / "a.jpg",)


def test_pictures_may_lie_elsewhere(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = write(tmp_path_factory.mktemp("texts") / "dataset_flickr30k.json", karpathy())
    check(read_retrieval_set(path, root=root), root)
    with pytest.raises(InputError, match=r"3 of 3 pictures are not under .*the first is 'a.jpg'"):
        read_retrieval_set(path)


def test_languages_of_rows(root: Path) -> None:
    path = write(root / "rows.jsonl", json.dumps({"image": "a.jpg", "en": ["a dog"], "zh": ["狗", "一只狗"]}))
    assert read_retrieval_set(path).texts == ("a dog",)
    assert read_retrieval_set(path, language="zh").texts == ("狗", "一只狗")
    with pytest.raises(InputError, match=r"line 1: a row has 'image' or 'video', and texts as 'fr'"):
        read_retrieval_set(path, language="fr")


def test_coco_of_karpathy_in_two_folders(tmp_path: Path) -> None:
    rows = []
    for part in ("val", "train"):
        name = f"COCO_{part}2014_000000000001.jpg"
        write(tmp_path / f"{part}2014" / name, "")
        sentences = [{"raw": part}]
        rows.append({"filepath": f"{part}2014", "filename": name, "split": "test", "sentences": sentences})
    path = write(tmp_path / "annotations" / "dataset_coco.json", {"images": rows})
    found = read_retrieval_set(path)
    assert [file.parent.name for file in found.files] == ["val2014", "train2014"]
    with pytest.raises(InputError, match="no split 'val', but test"):
        read_retrieval_set(path, split="val")


def test_the_release_of_coco_cn(tmp_path: Path) -> None:
    ids = ["COCO_val2014_000000000042", "COCO_train2014_000000000007", "COCO_val2014_000000000001"]
    for one in ids:
        write(tmp_path / one.split("_")[1] / f"{one}.jpg", "")
    folder = tmp_path / "coco-cn"
    write(
        folder / "imageid.human-written-caption.txt", "".join(f"{one}#0\t{one[-2:]} 只 狗\n" for one in ids)
    )
    write(folder / "coco-cn_test.txt", f"{ids[0]}\n{ids[1]}\n")
    found = read_retrieval_set(folder, language="cn")
    assert found.texts == ("42 只 狗", "07 只 狗")
    assert [file.name for file in found.files] == [f"{one}.jpg" for one in ids[:2]]


def test_the_release_of_xtd10(tmp_path: Path) -> None:
    folder = tmp_path / "XTD10"
    write(folder / "test_image_names.txt", "COCO_val2014_1.jpg\nCOCO_train2014_2.jpg\n")
    write(folder / "test_1kcaptions_it.txt", "un cane\nun gatto\n")
    write(tmp_path / "STAIR" / "test_1kcaptions_jp.txt", "犬\n猫\n")
    write(folder / "val2014" / "COCO_val2014_1.jpg", "")
    write(tmp_path / "train2014" / "COCO_train2014_2.jpg", "")
    assert read_retrieval_set(folder, language="it").texts == ("un cane", "un gatto")
    for language in ("ja", "jp"):
        assert read_retrieval_set(folder, language=language).texts == ("犬", "猫")
    with pytest.raises(InputError, match=r"no texts in 'fr' \(test_1kcaptions_fr.txt\)"):
        read_retrieval_set(folder, language="fr")
    write(folder / "test_1kcaptions_it.txt", "un cane\n")
    with pytest.raises(InputError, match="1 texts for 2 pictures"):
        read_retrieval_set(folder, language="it")


def test_xtd_as_published_with_the_benchmark(root: Path) -> None:
    document = {"image_paths": ["a.jpg", "3.jpg"], "annotations": ["개", "나무"], "indicies": [0, 1]}
    write(root / "multilingual_mscoco_captions-ko.json", document)
    assert read_retrieval_set(root, language="ko").texts == ("개", "나무")


def test_videos_have_their_suffix_found(tmp_path: Path) -> None:
    write(tmp_path / "videos" / "video7.mp4", "")
    write(tmp_path / "videos" / "video8" / "frame_1.jpg", "")
    rows = [{"video": name, "caption": "a man sings"} for name in ("video7", "video8")]
    path = write(tmp_path / "msrvtt.json", rows)
    files = read_retrieval_set(path).files
    assert files == (tmp_path / "videos" / "video7.mp4", tmp_path / "videos" / "video8")


def test_segmented_chinese_of_flickr30k_cn(root: Path) -> None:
    path = write(root / "seg.txt", "3.jpg#zhm#0 一 棵 树\n")
    assert read_retrieval_set(path).texts == ("一 棵 树",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", {"a": 1}, "a.json: images is missing or null, expected a list: no known form"),
        ("a.json", {"images": 5}, "no known form"),
        ("a.json", {"image_paths": ["a.jpg"], "annotations": []}, "1 pictures and 0 texts"),
        ("a.json", "5", "no known form"),
        ("a.json", "{", "not JSON"),
        ("a.json", [{"image": "a.jpg"}], "row 0: a row has"),
        ("a.json", [{"image": "a.jpg", "caption": []}], "row 0: a row has"),
        ("a.json", [{"image": "a.jpg", "caption": " "}], "one of them is empty"),
        ("a.json", [], "holds no pair"),
        ("a.jsonl", "{}\nx\n", "line 1: a row has"),
        ("a.jsonl", '{"image": "a.jpg", "caption": "x"}\nx\n', "line 2: not JSON"),
        ("a.txt", "a.jpg\n", "line 1: expected a picture's name and its text"),
        ("a.txt", "a.jpg,x\n\n,\n", "line 3"),
        ("a.csv", "", "is .json, .jsonl, .txt or a folder"),
        ("a.json", [{"image": "a\0.jpg", "caption": "x"}], r"1 of 1 pictures .* first is 'a\\x00.jpg';"),
        ("a.json", [{"video": "v" * 256, "caption": "x"}], r"1 of 1 pictures .* first is 'v{79}\.\.\.;"),
        ("a.txt", f"a.jpg,x\n{'b' * 300}.jpg,x\n", r"1 of 2 pictures .* first is 'b{79}\.\.\.;"),
    ],
)
def test_what_is_wrong_is_named(root: Path, name: str, content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_retrieval_set(write(root / name, content))


def sentence(raw: Any) -> dict[str, Any]:
    return {"filename": "a.jpg", "split": "test", "sentences": [{"raw": "x"}, {"raw": raw}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("5", "is 5, expected an object"),
        ("null", "is missing or null, expected an object"),
        ({"images": {"a": 1}}, "images is .*, expected a list"),
        ({"images": ["a.jpg"]}, r"images\[0\] is 'a.jpg', expected an object"),
        ({"images": [{"split": 1}]}, r"images\[0\]: split is 1, expected text"),
        ({"images": [{"split": ["test"]}]}, r"images\[0\]: split is \['test'\], expected text"),
        (
            {"images": [{"split": "test", "sentences": [{"raw": "x"}]}]},
            r"images\[0\]: filename is missing or null, expected text",
        ),
        ({"images": [{**sentence("x"), "filepath": 3}]}, r"images\[0\]: filepath is 3, expected text"),
        (
            {"images": [{**sentence("x"), "sentences": "x"}]},
            r"images\[0\]: sentences is 'x', expected a list",
        ),
        ({"images": [sentence("x"), sentence(5)]}, r"images\[1\]: sentences\[1\]: raw is 5, expected text"),
        ({"images": [sentence(None)]}, r"sentences\[1\]: raw is missing or null, expected text"),
        ({**coco(), "annotations": {"image_id": 7}}, "annotations is .*, expected a list"),
        (
            {**coco(), "annotations": [{"image_id": [7], "caption": "x"}]},
            r"annotations\[0\]: image_id is \[7\]",
        ),
        ({**coco(), "annotations": [{"image_id": 9, "caption": "x"}]}, "image_id is 9, which no image has"),
        (
            {**coco(), "annotations": [{"image_id": 7, "caption": 5}]},
            r"annotations\[0\]: caption is 5, expected text",
        ),
        ({"annotations": [], "images": [{"id": {}}]}, r"images\[0\]: id is \{\}, expected a number or text"),
        (
            {"annotations": [], "images": [{"id": 1, "file_name": 2}]},
            r"images\[0\]: file_name is 2, expected text",
        ),
        ({"image_paths": "ab", "annotations": ["x", "y"]}, "image_paths is 'ab', expected a list"),
        ({"image_paths": [5], "annotations": ["x"]}, r"image_paths\[0\] is 5, expected text"),
        ({"image_paths": ["a.jpg"], "annotations": [["x"]]}, r"annotations\[0\] is \['x'\], expected text"),
        ({"image_paths": ["a.jpg"]}, "annotations is missing or null, expected a list"),
    ],
)
def test_values_of_another_type_are_named(root: Path, content: Any, message: str) -> None:
    with pytest.raises(InputError, match=rf"a\.json.*{message}"):
        read_retrieval_set(write(root / "a.json", content))


def test_a_folder_without_or_with_several_files(root: Path) -> None:
    with pytest.raises(InputError, match=r"none of flickr30k_test_karpathy.txt, .*name the file"):
        read_retrieval_set(root)
    for name in ("dataset_flickr30k.json", "coco_test_karpathy.json"):
        write(root / name, FORMS[name])
    with pytest.raises(InputError, match=r"coco_test_karpathy.json, dataset_flickr30k.json in it: name one"):
        read_retrieval_set(root)
