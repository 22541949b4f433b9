"""The probe of a tower, on pictures whose classes are colours."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from internvl.checkpoints.write import save_model
from internvl.errors import InputError
from internvl.recipes import nano_probe
from internvl.recipes.nano_probe import WORDS, probe, table
from tests.training.tiny import chat_model

COLOURS = ((250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250), (250, 0, 250))


def encoded(label: int, shade: int) -> bytes:
    colour = tuple(max(value - shade, 0) for value in COLOURS[label])
    data = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(data, "JPEG")
    return data.getvalue()


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three ImageNet classes of which two are used; two photos a word and one that names two things."""
    monkeypatch.setattr(nano_probe, "CLASS_STEP", 2)
    monkeypatch.setattr(nano_probe, "TRAIN_PER_CLASS", 6)
    monkeypatch.setattr(nano_probe, "PHOTOS_PER_CLASS", {"train": 4, "val": 2})
    (tmp_path / "tiny-imagenet").mkdir()
    with zipfile.ZipFile(tmp_path / "tiny-imagenet" / "train.zip", "w") as archive:
        for label in range(3):
            for index in range(21):
                archive.writestr(f"n{label}/n{label}_{index:02d}.JPEG", encoded(label, index))
    folder = tmp_path / "flickr8k"
    folder.mkdir()
    for split in ("train", "val"):
        rows = [{"image": "0.jpg", "en": ["A dog in water.", "A Dog .", "water"]}]
        for label, word in enumerate(WORDS):
            for index in range(5):
                name = f"{split}-{word}-{index}.jpg"
                (folder / name).write_bytes(encoded(label, index))
                rows.append({"image": name, "en": [f"The {word.upper()} .", f"a {word}", "Something else"]})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    chat = chat_model()
    save_model(chat, chat.config, tmp_path / "model", tokenizer_files={"tokenizer.json": b"{}"})
    return tmp_path / "model"


def test_colours_are_told_apart(data: Path, model: Path, tmp_path: Path) -> None:
    rows = probe(data, model, (-1, 0), tmp_path / "probe.json")
    assert len(rows) == 3 * 2 * 3  # tasks and sizes, hidden states, kinds of feature
    assert {(row["task"], row["size"], row["train"], row["test"], row["classes"]) for row in rows} == {
        ("tiny-imagenet", 112, 12, 30, 2),
        ("tiny-imagenet", 224, 12, 30, 2),
        ("flickr8k words", 224, 24, 12, 6),
    }
    for row in rows:
        if row["layer"] == 0 and row["feature"] == "class":  # does not see the picture yet
            assert row["knn"] == pytest.approx(1 / row["classes"])
        if row["layer"] == -1 and row["feature"] == "patches":
            assert (row["knn"], row["ridge"]) == (1, 1)
    assert json.loads((tmp_path / "probe.json").read_text()) == {"model": str(model), "rows": rows}
    lines = table(rows).splitlines()
    assert lines[0].startswith("| task | size |")
    assert len(lines) == len(rows) + 2


def test_too_few_pictures(data: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nano_probe, "PHOTOS_PER_CLASS", {"train": 4, "val": 6})
    with pytest.raises(InputError, match="only 5 photos for a word, 6"):
        probe(data, model)
    monkeypatch.setattr(nano_probe, "TRAIN_PER_CLASS", 7)
    with pytest.raises(InputError, match="has 21 pictures of a class: 22"):
        probe(data, model)
