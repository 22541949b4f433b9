"""Captions of pictures on the command line, of files, folders and lists; pictures that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from internvl import ContrastiveModel
from internvl.cli.main import DONE, FAILED, WRONG_USE
from tests.cli.conftest import Run, save_noise


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, one of them in a subfolder."""
    pictures = tmp_path / "pictures"
    (pictures / "sub").mkdir(parents=True)
    for number, name in enumerate(("b.png", "c.png", "sub/a.png")):
        save_noise(pictures / name, 60, 40, seed=number)
    return pictures


def one_line(caption: str) -> str:
    return " ".join(caption.split())


def test_one_picture_is_its_caption(run: Run, contrastive: ContrastiveModel, path: str, photo: str) -> None:
    finished = run("caption", photo, "--model", path)
    assert (finished.status, finished.out) == (DONE, one_line(contrastive.caption(photo)) + "\n")
    assert finished.err == "1 pictures done, 0 failed\n"
    words = ("--num-beams", "1", "--min-new-tokens", "0", "--max-new-tokens", "5", "--prompt", "x:")
    settings = {"num_beams": 1, "min_new_tokens": 0, "max_new_tokens": 5, "prompt": "x:"}
    cropped = contrastive.caption(photo, fit="crop", **settings)
    finished = run("caption", "--model", path, photo, *words, "--fit", "crop")
    assert finished.out == one_line(cropped) + "\n"


def test_a_folder_as_lines(run: Run, contrastive: ContrastiveModel, path: str, folder: Path) -> None:
    finished = run("caption", str(folder), "--model", path, "--batch", "2")
    names = ("b.png", "c.png", "sub/a.png")
    expected = contrastive.caption([folder / name for name in names])
    assert finished.status == DONE
    assert finished.out.splitlines() == [
        f"{name}\t{one_line(caption)}" for name, caption in zip(names, expected, strict=True)
    ]


def test_a_list_as_json_with_what_failed(run: Run, path: str, folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"no picture")
    names = folder / "names.txt"
    names.write_text("sub/a.png\nmissing.png\nbroken.png\nb.png\n")
    finished = run("caption", str(names), "--model", path, "--json", "--num-beams", "1")
    assert finished.status == FAILED
    assert [Path(row["image"]).name for row in finished.json["captions"]] == ["a.png", "b.png"]
    assert all(row["caption"] for row in finished.json["captions"])
    failed = finished.json["failed"]
    assert [Path(row["key"]).name for row in failed] == ["missing.png", "broken.png"]
    assert all(row["error"] for row in failed)
    assert "2 pictures done, 2 failed" in finished.err


def test_json_lines_appear_when_they_are_complete(
    run: Run, path: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "captions.jsonl"
    words = ("caption", str(folder), "--model", path, "--output", str(target), "--num-beams", "1")
    finished = run(*words)
    assert (finished.status, finished.out) == (DONE, "")
    rows = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert [row["image"] for row in rows] == ["b.png", "c.png", "sub/a.png"]
    before = target.read_bytes()
    captions = iter([["x"]])
    monkeypatch.setattr(ContrastiveModel, "caption", lambda *_, **__: next(captions))
    with pytest.raises((StopIteration, RuntimeError)):
        run(*words, "--batch", "1")
    assert target.read_bytes() == before
    partial = tmp_path / "captions.jsonl.partial"
    assert partial.read_text() == '{"image": "b.png", "caption": "x"}\n'


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "at least one"),
        (("PHOTO", "--batch", "0"), "--batch"),
        (("PHOTO", "--min-new-tokens", "40"), "min_new_tokens 40 is above max_new_tokens 32"),
        (("PHOTO", "--output", "no/such/folder/a.jsonl"), "no/such/folder"),
        (("missing.png",), "missing.png"),
        (("PHOTO", "--output", "PHOTO"), "is one of the inputs"),
    ],
)
def test_wrong_use(run: Run, path: str, photo: str, words: tuple[str, ...], told: str) -> None:
    finished = run("caption", *(photo if word == "PHOTO" else word for word in words), "--model", path)
    assert (finished.status, finished.out) == (WRONG_USE, "")
    assert told in finished.err


def test_other_models_are_refused(run: Run, model: str, tower: str, path: str, photo: str) -> None:
    for other, told in ((model, "is a chat model"), (tower, "is a vision tower")):
        finished = run("caption", photo, "--model", other)
        assert finished.status == WRONG_USE
        assert told in finished.err
    finished = run("chat", photo, "What?", "--model", path)
    assert finished.status == WRONG_USE
    assert "does not chat" in finished.err
