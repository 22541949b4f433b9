"""Features of pictures in files, in whole or not at all, and pictures that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import internvl
from internvl.api.vision import VisionModel
from internvl.cli.arrays import write_arrays
from internvl.cli.main import DONE, FAILED, WRONG_USE
from internvl.errors import InputError
from tests.cli.conftest import Run, save_noise


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, one of them in a subfolder, among other things."""
    pictures = tmp_path / "pictures"
    (pictures / "sub").mkdir(parents=True)
    (pictures / ".hidden").mkdir()
    save_noise(pictures / "b.png", 60, 40, seed=1)
    save_noise(pictures / "sub" / "a.png", 40, 60, seed=2)
    save_noise(pictures / ".hidden" / "c.png", 8, 8)
    (pictures / "notes.txt").write_text("nothing")
    return pictures


def test_a_folder_as_npz(run: Run, tower: str, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.npz"
    finished = run("features", str(folder), "--model", tower, "--output", str(target), "--batch", "1")
    assert finished.status == DONE
    assert finished.out.endswith(f"{target}\n")
    names = [str(folder / "b.png"), str(folder / "sub" / "a.png")]
    loaded = internvl.load(tower)
    assert isinstance(loaded, VisionModel)
    expected = loaded.features(names)
    with np.load(target) as arrays:
        assert arrays["names"].tolist() == names
        np.testing.assert_allclose(arrays["pooled"], expected.pooled.numpy(), atol=1e-6)
        np.testing.assert_allclose(arrays["last_hidden_state"], expected.last_hidden_state.numpy(), atol=1e-6)


def test_a_layer_as_safetensors(run: Run, tower: str, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    words = ("--model", tower, "--output", str(target), "--layer", "1", "--what", "states", "--json")
    finished = run("features", str(folder), *words)
    assert finished.json["shapes"] == {"last_hidden_state": [2, 17, 32]}
    assert [picture["width"] for picture in finished.json["pictures"]] == [60, 40]
    loaded = internvl.load(tower)
    assert isinstance(loaded, VisionModel)
    expected = loaded.features([folder / "b.png", folder / "sub" / "a.png"], layer=1)
    with safe_open(target, "pt") as file:
        names = json.loads(file.metadata()["names"])
        torch.testing.assert_close(file.get_tensor("last_hidden_state"), expected.last_hidden_state)
    assert [Path(name).name for name in names] == ["b.png", "a.png"]


def test_one_picture_as_safetensors(run: Run, tower: str, photo: str, tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    assert run("features", photo, "--model", tower, "--output", str(target)).status == 0
    with safe_open(target, "pt") as file:
        torch.testing.assert_close(file.get_tensor("pooled"), file.get_tensor("last_hidden_state")[:, 0])


def test_the_tower_inside_a_chat_model(run: Run, model: str, photo: str) -> None:
    finished = run("features", photo, "--model", model, "--json")
    assert finished.status == DONE
    (picture,) = finished.json["pictures"]
    assert len(picture["pooled"]) == 32
    assert finished.json["output"] is None


def test_pictures_that_cannot_be_read_do_not_stop_the_run(
    run: Run, tower: str, photo: str, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    target = tmp_path / "out.npz"
    words = ("--model", tower, "--output", str(target), "--json", "--what", "pooled")
    finished = run("features", str(broken), photo, "missing.png", *words)
    assert finished.status == FAILED
    assert [failed["name"] for failed in finished.json["failed"]] == [str(broken), "missing.png"]
    assert "broken.png" in finished.err
    assert finished.json["shapes"] == {"pooled": [1, 32]}
    with np.load(target) as arrays:
        assert arrays["names"].tolist() == [photo]


def test_nothing_readable_writes_nothing(run: Run, tower: str, tmp_path: Path) -> None:
    target = tmp_path / "out.npz"
    finished = run("features", "missing.png", "--model", tower, "--output", str(target))
    assert finished.status == FAILED
    assert not target.exists()
    assert "0 pictures done, 1 failed" in finished.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "at least one"),
        (("PHOTO",), "--output"),
        (("PHOTO", "--output", "a.csv"), ".npz"),
        (("PHOTO", "--output", "no/such/folder/a.npz"), "no/such/folder"),
        (("PHOTO", "--json", "--batch", "0"), "--batch"),
        (("PHOTO", "--json", "--layer", "9"), "hidden state 9"),
        (("EMPTY", "--json"), "no pictures in"),
    ],
)
def test_wrong_use(
    run: Run, tower: str, photo: str, tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    places = {"PHOTO": photo, "EMPTY": str(empty)}
    finished = run("features", *(places.get(word, word) for word in words), "--model", tower)
    assert (finished.status, finished.out) == (WRONG_USE, "")
    assert told in finished.err


def test_an_unfinished_file_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out.npz"
    write_arrays(target, {"a": torch.ones(2)}, ["x", "y"])
    before = target.read_bytes()

    def full(*arguments: object, **arrays: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.savez", full)
    with pytest.raises(OSError, match="No space"):
        write_arrays(target, {"a": torch.zeros(2)}, ["x", "y"])
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["out.npz"]
    with pytest.raises(InputError, match="csv"):
        write_arrays(tmp_path / "a.csv", {}, [])
