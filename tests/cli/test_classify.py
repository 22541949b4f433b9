"""Classes of pictures on the command line: names, files of classes, templates, shares."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from internvl import ContrastiveModel
from internvl.cli.classify import read_classes
from internvl.cli.main import DONE, FAILED, WRONG_USE
from internvl.evaluation.prompts import general_templates
from tests.cli.conftest import Run, save_noise

NAMES = ("cat", "red panda", "dog")


@pytest.fixture
def other(tmp_path: Path) -> str:
    return save_noise(tmp_path / "other.png", 60, 60, seed=3)


@pytest.mark.parametrize("mode", ["C", "G"])
def test_shares_are_those_of_the_logits(
    run: Run, contrastive: ContrastiveModel, path: str, photo: str, other: str, mode: str
) -> None:
    words = ("--classes", ",".join(NAMES), "--template", "a {}", "--mode", mode, "--json", "--model", path)
    finished = run("classify", photo, other, *words)
    assert finished.status == DONE
    texts = [f"a {name}" for name in NAMES]
    logits = contrastive.logits([photo, other], texts, mode, fit="crop")  # type: ignore[arg-type]
    for picture, expected in zip(finished.json["pictures"], torch.softmax(logits, 1).tolist(), strict=True):
        shares = {one["name"]: one["probability"] for one in picture["classes"]}
        assert shares == pytest.approx(dict(zip(NAMES, expected, strict=True)), abs=1e-4)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert finished.json["classes"] == 3


def test_a_table(run: Run, path: str, photo: str, other: str) -> None:
    finished = run("classify", photo, other, "--classes", ",".join(NAMES), "--top", "2", "--model", path)
    head, *rows = finished.out.splitlines()
    assert head.split() == ["picture", "class", "2."]
    assert [row.split()[0] for row in rows] == ["photo.png", "other.png"]
    assert all(any(name in row for name in NAMES) for row in rows)


def test_a_file_of_classes(run: Run, path: str, photo: str, tmp_path: Path) -> None:
    file = tmp_path / "pets.json"
    classes = {"classes": ["cat", ["dog", "hound"]], "templates": ["a {}."]}
    file.write_text(json.dumps(classes))
    finished = run("classify", photo, "--classes", str(file), "--json", "--model", path, "--top", "9")
    assert {one["name"] for one in finished.json["pictures"][0]["classes"]} == {"cat", "dog"}
    assert finished.json["set"] == "pets"


def test_a_broken_picture_does_not_stop_the_others(run: Run, path: str, photo: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    finished = run("classify", str(broken), photo, "--classes", "a,b", "--json", "--model", path)
    assert finished.status == FAILED
    assert [row["image"] for row in finished.json["pictures"]] == ["photo.png"]
    assert [row["key"] for row in finished.json["failed"]] == ["broken.png"]


def test_what_the_classes_may_be(tmp_path: Path) -> None:
    assert read_classes("cat, dog", (), "zh").templates == general_templates("zh")
    assert read_classes("cat, dog", (), "en").names == (("cat",), ("dog",))
    shipped = read_classes("cifar10", (), "en")
    assert len(shipped) == 10
    assert read_classes("cifar10", ("just {}",), "en").templates == ("just {}",)
    assert read_classes("cifar10", ("just {}",), "en").names == shipped.names
    many = [f"thing {number}" for number in range(1000)]  # longer than any path may be
    assert read_classes(",".join(many), (), "en").labels == tuple(many)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "--classes"),
        (("--classes", "cat"), "is one class"),
        (("--classes", "missing.json"), "missing.json"),
        (("--classes", "a,b", "--template", "a photo"), "{}"),
        (("--classes", "cifar10", "--template", "a photo"), "{}"),
        (("--classes", "a,b", "--language", "xx"), "xx"),
        (("--classes", "a,b", "--top", "0"), "--top"),
    ],
)
def test_wrong_use(run: Run, path: str, photo: str, words: tuple[str, ...], told: str) -> None:
    finished = run("classify", photo, *words, "--model", path)
    assert (finished.status, finished.out) == (WRONG_USE, "")
    assert told in finished.err
