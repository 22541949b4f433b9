"""`internvl eval zero-shot` and `retrieval`: the library's numbers, from class folders, rows and sets."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from internvl import ContrastiveModel
from internvl.cli.main import DONE, WRONG_USE
from internvl.evaluation.prompts import general_templates, make_prompts, open_prompts, parse_prompts
from internvl.evaluation.retrieval import recall
from internvl.evaluation.video import video_recall
from internvl.evaluation.zero_shot import accuracy, class_logits, classifier
from tests.cli.conftest import Run

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "evaluate-contrastive.md"
COLOURS = {"red_cat": (200, 30, 30), "green dog": (30, 200, 30), "bird": (30, 30, 200)}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Class folders of two pictures each, one of them in a folder of its own."""
    root = tmp_path / "photos"
    for name, colour in COLOURS.items():
        for number in range(2):
            folder = root / name / ("deep" if number else "")
            folder.mkdir(parents=True, exist_ok=True)
            save(folder / f"{number}.png", colour, number)
    (root / ".hidden").mkdir()
    return root


def save(path: Path, colour: tuple[int, int, int], seed: int) -> Path:
    noise = np.random.default_rng(seed).integers(-29, 30, (70, 50, 3))
    Image.fromarray((np.array(colour) + noise).astype(np.uint8)).save(path)
    return path


def pictures_of(root: Path) -> list[Path]:
    return sorted(root.glob("*/**/*.png"), key=lambda file: file.relative_to(root))


@pytest.mark.parametrize("mode", ["C", "G"])
def test_class_folders_are_their_own_classes(
    run: Run, contrastive: ContrastiveModel, path: str, folders: Path, mode: Any
) -> None:
    finished = run("eval", "zero-shot", path, str(folders), "--mode", mode, "--json", "--batch", "4")
    assert finished.status == DONE, finished.err
    names = sorted(COLOURS)
    prompts = make_prompts([name.replace("_", " ") for name in names])
    files = pictures_of(folders)
    images_BE = contrastive.embed_images(files, mode, fit="crop")
    logits_BY = class_logits(images_BE, classifier(contrastive.embed_texts, prompts))
    expected = accuracy(logits_BY, [names.index(file.relative_to(folders).parts[0]) for file in files])
    assert finished.json["scores"] == {
        "acc1": expected.acc1,
        "acc5": None,
        "mean_per_class": expected.mean_per_class,
    }
    assert (finished.json["pictures"], finished.json["classes"], finished.json["failed"]) == (6, 3, [])
    assert finished.json["published"] is None


def test_a_shipped_set_stands_beside_what_was_published(run: Run, path: str, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        save(tmp_path / "data" / name / "a.png", (9, 99, 199), 0)
    finished = run("eval", "zero-shot", path, str(tmp_path / "data"), "--classes", "cifar10")
    assert finished.status == DONE, finished.err
    head, *rows = [line.split() for line in finished.out.splitlines()]
    assert head == ["measure", "%", "published"]
    assert [(row[0], row[2]) for row in rows] == [
        ("acc1", "99.35"),
        ("acc5", "99.96"),
        ("mean_per_class", "99.35"),
    ]
    assert "CIFAR-10, mode C: 10 classes, 2 pictures" in finished.err
    other = run(
        "eval",
        "zero-shot",
        path,
        str(tmp_path / "data"),
        "--classes",
        "cifar10",
        "--published",
        "stl10",
        "--json",
        "--among",
        "present",
    )
    assert other.json["published"] == {"acc1": 0.9945, "acc5": 1.0, "mean_per_class": 0.9945}
    assert other.json["classes"] == 2


def write_rows(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_rows_with_names_numbers_and_several_labels(
    run: Run, contrastive: ContrastiveModel, path: str, folders: Path
) -> None:
    files = [str(file.relative_to(folders)) for file in pictures_of(folders)]
    labels: list[Any] = ["bird", 5, "7", ["cat", 1], [], "Green_Dog"]
    document = {"classes": list(open_prompts("stl10").labels), "labels": [f"n{n}" for n in range(10)]}
    document["templates"] = ["a photo of a {}.", "my {}"]
    document["classes"][9] = "green dog"
    classes = folders.parent / "classes.json"
    classes.write_text(json.dumps(document))
    rows = [{"image": file, "what": label} for file, label in zip(files, labels, strict=True)]
    data = write_rows(folders / "rows.jsonl", *rows)
    words = ("--classes", str(classes), "--label", "what", "--json")
    finished = run("eval", "zero-shot", path, data, *words)
    assert finished.status == DONE, finished.err
    images_BE = contrastive.embed_images([folders / file for file in files], fit="crop")
    logits_BY = class_logits(images_BE, classifier(contrastive.embed_texts, open_prompts(classes)))
    expected = accuracy(logits_BY, [1, 5, 7, {3, 1}, [], 9])
    assert finished.json["scores"] == {"acc1": expected.acc1, "acc5": expected.acc5, "mean_per_class": None}
    assert finished.json["pictures"] == 5
    among = folders.parent / "among.json"
    among.write_text(json.dumps([["n1", 3], "n5", "n7", "n9"]))
    fewer = run("eval", "zero-shot", path, data, *words, "--among", str(among))
    expected = accuracy(logits_BY, [1, 5, 7, {3, 1}, [], 9], [[1, 3], 5, 7, 9])
    assert fewer.json["scores"] == {
        "acc1": expected.acc1,
        "acc5": None,
        "mean_per_class": expected.mean_per_class,
    }
    unknown = run("eval", "zero-shot", path, data, "--classes", "stl10", "--label", "what")
    assert (unknown.status, "has no class 'Green_Dog'" in unknown.err) == (WRONG_USE, True)
    missing = run("eval", "zero-shot", path, data, "--classes", "stl10")
    assert "has no 'label', but image, what" in missing.err


@pytest.mark.parametrize("entries", [["bird", "red_cat", 0], [["bird", "Red Cat"], ["red_cat"]]])
def test_a_class_that_competes_twice_is_named_before_anything_is_loaded(
    run: Run, folders: Path, entries: list[Any]
) -> None:
    among = folders.parent / "among.json"
    among.write_text(json.dumps(entries))
    finished = run("eval", "zero-shot", "no/model", str(folders), "--among", str(among))
    assert (finished.status, finished.out) == (WRONG_USE, "")
    assert f"--among {among}: class '{'bird' if 0 in entries else 'red cat'}' is in several" in finished.err


@pytest.mark.parametrize("entries", [[], ["bird"]])
def test_a_label_that_does_not_compete_is_named_before_anything_is_loaded(
    run: Run, folders: Path, entries: list[Any]
) -> None:
    among = folders.parent / "among.json"
    among.write_text(json.dumps(entries))
    finished = run("eval", "zero-shot", "no/model", str(folders), "--among", str(among))
    assert (finished.status, finished.out) == (WRONG_USE, "")
    missing = "green dog" if entries else "bird"
    assert f"none of its {len(entries)} classes is {missing!r}, which a picture shows" in finished.err


def test_a_name_that_is_too_long_is_a_picture_that_cannot_be_read(run: Run, path: str, folders: Path) -> None:
    rows = [{"image": name, "label": "bird"} for name in ("bird/0.png", f"{'x' * 300}.png")]
    data = write_rows(folders / "rows.jsonl", *rows)
    finished = run("eval", "zero-shot", path, data, "--classes", "cat,bird", "--json")
    assert finished.status == DONE, finished.err
    assert [one["error"][:12] for one in finished.json["failed"]] == ["no such file"]


def test_pictures_that_cannot_be_read_are_told_and_left_out(run: Run, path: str, folders: Path) -> None:
    (folders / "bird" / "broken.png").write_bytes(b"not a picture")
    finished = run("eval", "zero-shot", path, str(folders), "--json")
    assert finished.status == DONE
    assert [Path(one["key"]).name for one in finished.json["failed"]] == ["broken.png"]
    assert finished.json["pictures"] == 6
    assert "1 of 7 could not be read" in finished.err
    for file in pictures_of(folders):
        file.write_bytes(b"")
    assert run("eval", "zero-shot", path, str(folders)).status == WRONG_USE


def test_videos_are_the_mean_of_their_frames(
    run: Run, contrastive: ContrastiveModel, path: str, tmp_path: Path
) -> None:
    (tmp_path / "clip").mkdir()
    for number in range(4):
        save(tmp_path / "clip" / f"f_{number}.png", (40 * number, 99, 9), number)
    labels = write_rows(tmp_path / "rows.jsonl", {"video": "clip", "label": 0})
    words = ("--classes", "a cat,a dog,a bird,a ship,a tree", "--frames", "2", "--json")
    finished = run("eval", "zero-shot", path, labels, *words)
    assert finished.status == DONE, finished.err
    vectors_FE = contrastive.embed_images([tmp_path / "clip" / f"f_{n}.png" for n in (1, 3)], fit="crop")
    prompts = make_prompts(["a cat", "a dog", "a bird", "a ship", "a tree"])
    logits_BY = class_logits(vectors_FE.mean(0, keepdim=True), classifier(contrastive.embed_texts, prompts))
    assert finished.json["scores"]["mean_1_5"] == accuracy(logits_BY, [0]).mean_1_5


@pytest.fixture
def pairs(folders: Path) -> str:
    files = [str(file.relative_to(folders)) for file in pictures_of(folders)]
    rows = [
        {"image": file, "en": [f"number {n}", f"a thing {n}"], "zh": [f"第{n}"]}
        for n, file in enumerate(files)
    ]
    return write_rows(folders / "pairs.jsonl", *rows)


@pytest.mark.parametrize("mode", ["C", "G"])
def test_retrieval_is_the_recall_of_the_vectors(
    run: Run, contrastive: ContrastiveModel, path: str, folders: Path, pairs: str, mode: Any
) -> None:
    finished = run("eval", "retrieval", path, pairs, "--mode", mode, "--json", "--published", "coco")
    assert finished.status == DONE, finished.err
    images_IE = contrastive.embed_images(pictures_of(folders), mode)
    texts_TE = contrastive.embed_texts([text for n in range(6) for text in (f"number {n}", f"a thing {n}")])
    expected = recall(images_IE, texts_TE, [n // 2 for n in range(12)])
    scores = finished.json["scores"]
    assert scores["mean"] == pytest.approx(expected.mean)
    assert [scores[f"text_to_image@{k}"] for k in (1, 5, 10)] == list(expected.text_to_image.values())
    assert [scores[f"image_to_text@{k}"] for k in (1, 5, 10)] == list(expected.image_to_text.values())
    assert finished.json["published"]["text_to_image@1"] == {"C": 0.541, "G": 0.586}[mode]
    assert (finished.json["pictures"], finished.json["texts"]) == (6, 12)


def test_dual_softmax_and_languages(
    run: Run, contrastive: ContrastiveModel, path: str, folders: Path, pairs: str
) -> None:
    words = ("--language", "zh", "--dual-softmax", "--scale", "50", "--json", "--fit", "crop")
    finished = run("eval", "retrieval", path, pairs, *words)
    images_IE = contrastive.embed_images(pictures_of(folders), fit="crop")
    texts_TE = contrastive.embed_texts([f"第{n}" for n in range(6)])
    expected = video_recall(images_IE, texts_TE, range(6), dual_softmax=True, scale=50)
    assert finished.json["scores"]["mean"] == pytest.approx(expected.mean)
    assert finished.json["texts"] == 6


def test_a_broken_picture_goes_with_its_texts(run: Run, path: str, folders: Path, pairs: str) -> None:
    (folders / "bird" / "0.png").write_bytes(b"")
    finished = run("eval", "retrieval", path, pairs, "--json")
    assert (finished.json["pictures"], finished.json["texts"], len(finished.json["failed"])) == (5, 10, 1)
    table = run("eval", "retrieval", path, pairs)
    assert [line.split()[0] for line in table.out.splitlines()][1:] == [
        f"{way}@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)
    ] + ["mean"]
    assert "1 of 6 could not be read" in table.err


def test_long_texts_are_refused_or_cut(run: Run, path: str, folders: Path) -> None:
    data = write_rows(folders / "long.jsonl", {"image": "bird/0.png", "caption": "word " * 200})
    refused = run("eval", "retrieval", path, data)
    assert (refused.status, "80" in refused.err) == (WRONG_USE, True)
    assert run("eval", "retrieval", path, data, "--truncate").status == DONE


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("zero-shot", "MODEL", "FOLDERS", "--examples", "0"), "--examples counts from 1"),
        (("zero-shot", "MODEL", "FOLDERS", "--batch", "0"), "--batch counts from 1"),
        (("zero-shot", "MODEL", "FOLDERS", "--frames", "0"), "--frames counts from 1"),
        (
            ("zero-shot", "MODEL", "FOLDERS", "--published", "x"),
            "nothing is published as 'x', but as imagenet",
        ),
        (("zero-shot", "MODEL", "PAIRS"), "say which classes there are"),
        (("zero-shot", "MODEL", "none"), "none"),
        (("zero-shot", "MODEL", "FOLDERS", "--classes", "cifar10"), "has no class"),
        (("retrieval", "MODEL", "PAIRS", "--scale", "5"), "goes with --dual-softmax"),
        (("retrieval", "MODEL", "PAIRS", "--published", "x"), "nothing is published"),
        (("retrieval", "MODEL", "none.json"), "cannot read none.json"),
    ],
)
def test_wrong_use(
    run: Run, path: str, folders: Path, pairs: str, words: tuple[str, ...], message: str
) -> None:
    Path(pairs).rename(folders.parent / "pairs.jsonl")
    places = {"MODEL": path, "FOLDERS": str(folders), "PAIRS": str(folders.parent / "pairs.jsonl")}
    finished = run("eval", *(places.get(word, word) for word in words))
    assert finished.status == WRONG_USE
    assert message in finished.err


def test_chat_models_are_refused(run: Run, model: str, folders: Path) -> None:
    finished = run("eval", "zero-shot", model, str(folders))
    assert (finished.status, "is a chat model" in finished.err) == (WRONG_USE, True)


def test_classes_of_the_guide_are_read() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    (block,) = re.findall(r"^```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    prompts = parse_prompts(json.loads(block), "guide", "zh")
    assert prompts.templates == general_templates("zh")
