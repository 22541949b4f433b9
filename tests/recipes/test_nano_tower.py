"""The repair of nano's tower with a small tower, a teacher that is a few lines, and two steps."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from internvl.checkpoints.load import load_model
from internvl.models.vlm import VLM
from internvl.recipes import nano_tower
from internvl.recipes.crops import Crops, Pictures
from internvl.recipes.nano_tower import repair, train_tower
from internvl.training.build import build
from internvl.training.distillation import Student, Teaching, spread
from internvl.training.recipe import Evaluation, ModelSpec, Recipe, Saving
from tests.invariants.training_worker import Ending, losses
from tests.recipes.conftest import Small

FEATURES = 6


def teacher(pixels_N3HW: Tensor) -> Tensor:
    """Of every place of 32x32 pixels the mean colours, and their squares."""
    colours_N3GG = nn.functional.avg_pool2d(pixels_N3HW / 255, 32)
    return torch.cat([colours_N3GG, colours_N3GG**2], 1).permute(0, 2, 3, 1)


def encoded(index: int, size: int, kind: str) -> bytes:
    source = torch.Generator().manual_seed(index)
    pixels = (torch.rand(size, size, 3, generator=source) * 255).byte().numpy()
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind)
    return data.getvalue()


KINDS = (
    Pictures(encoded=[encoded(index, 32, "PNG") for index in range(4)], batch=2, size=112, smallest=0.4),
    Pictures(encoded=[encoded(index, 48, "PNG") for index in range(4)], batch=2, size=224, smallest=0.4),
)


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the length of the recipe, from two steps; it measures and saves after each."""
    published = nano_tower.recipe

    def shorten(count: int) -> None:
        def short(start: Path | None = None, steps: int = 0) -> Recipe:
            return replace(
                published(start, count),
                log_every=1,
                evaluation=Evaluation(every=1),
                saving=Saving(every=1),
            )

        monkeypatch.setattr(nano_tower, "recipe", short)

    shorten(2)
    return shorten


def student(small: Small) -> Student:
    model = build(ModelSpec(checkpoint=str(small.checkpoint)), 0).model
    torch.manual_seed(0)
    mean_F, std_F = spread(teacher(Crops(KINDS, teacher).read(0)[1]))
    return Student(model.vit, model.config.projector, Teaching(mean_F=mean_F, std_F=std_F, classifier=None))


def train(small: Small, out: Path) -> tuple[Student, str]:
    made = student(small)
    return made, train_tower(nano_tower.recipe(), made, KINDS, teacher, out, lambda: {"val_loss": 1.0})


def test_the_upper_blocks_and_the_heads_learn(small: Small, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in student(small).state_dict().items()}
    made, reason = train(small, tmp_path)
    assert reason == "finished"
    changed = {name for name, value in made.state_dict().items() if not torch.equal(value, before[name])}
    upper = tuple(f"vit.layers.{index}." for index in range(5, 12))
    learnt = {name for name in before if name.startswith((*upper, "cell_head.", "class_head."))}
    assert changed <= learnt
    assert len(changed) > 0.9 * len(learnt)  # keys' biases change nothing
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "cell" in row]
    assert [row["step"] for row in steps] == [1, 2]
    for row in steps:
        assert row["loss"] == pytest.approx(row["cell"] + row["mean"] + row["classes"], rel=1e-4)
    assert [row["step"] for row in rows if "val_loss" in row] == [1, 2]


def test_called_again_it_goes_on_as_if_never_stopped(
    small: Small, tmp_path: Path, steps: Callable[[int], None]
) -> None:
    steps(4)
    whole, _ = train(small, tmp_path / "whole")
    with Ending(tmp_path / "parts", "ask", 3):
        assert train(small, tmp_path / "parts")[1] == "interrupted"
    parts, reason = train(small, tmp_path / "parts")
    assert reason == "finished"
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    expected = whole.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in parts.state_dict().items())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Photos for training and measuring, and an archive of three classes of 34 pictures."""
    folder = tmp_path / "data"
    (folder / "flickr8k").mkdir(parents=True)
    for split, count in (("train", 24), ("val", 3)):
        rows: list[dict[str, Any]] = [
            {"image": f"{split}-{index}.jpg", "en": ["A dog .", "The dog runs" if index % 2 else "a cat ."]}
            for index in range(count)
        ]
        (folder / "flickr8k" / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        for index, row in enumerate(rows):
            (folder / "flickr8k" / row["image"]).write_bytes(encoded(index, 40, "JPEG"))
    (folder / "tiny-imagenet").mkdir()
    with zipfile.ZipFile(folder / "tiny-imagenet" / "train.zip", "w") as archive:
        archive.writestr("README", "")
        for index in range(3 * 34):
            archive.writestr(f"n{index // 34}/{index % 34:03}.JPEG", encoded(index, 16, "JPEG"))
    return folder


def test_pictures_for_the_probe_are_held_back(data: Path) -> None:
    kept = nano_tower._small_pictures(data / "tiny-imagenet")
    numbers = [index for index in range(3 * 34) if index % 34 < 34 - nano_tower.HELD_BACK]
    assert kept == [encoded(index, 16, "JPEG") for index in numbers]


def test_the_whole_repair(small: Small, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is a chat model: its tower has learnt above, its projector is new, the rest is rounded."""
    classifier = (torch.randn(5, FEATURES), torch.randn(5))
    monkeypatch.setattr(nano_tower, "open_teacher", lambda folder, numbers: (teacher, classifier))
    monkeypatch.setattr(nano_tower, "published", lambda directory: small.checkpoint)
    repair(data, tmp_path / "out")
    made, start = load_model(tmp_path / "out" / "model"), load_model(small.checkpoint)
    assert isinstance(made, VLM)
    before = dict(start.named_parameters())
    same = {
        name for name, value in made.named_parameters() if torch.equal(value, before[name].bfloat16().float())
    }
    assert {"vit.layers.4.mlp.fc1.weight", "vit.embed.position", "llm.embed.weight"} <= same
    assert not {"vit.layers.11.mlp.fc1.weight", "vit.layers.5.attn.out.weight", "projector.fc1.weight"} & same
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert all(row["val_loss"] > 0 for row in rows if "val_loss" in row)
    assert all(row["classes"] > 0 for row in rows if "classes" in row)
    assert not any("words" in row for row in rows)
    (file,) = (tmp_path / "out" / "model").glob("*.safetensors")
    assert {value.dtype for value in load_file(file).values()} == {torch.bfloat16}


def test_words_are_neither_rare_nor_everywhere(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every photo has a dog; of 24 twelve have a dog that runs and twelve a cat."""
    monkeypatch.setattr(nano_tower, "RARE", 12)
    expected = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1 / 2, 1 / 2]])  # ".", "cat", "runs", "the"
    words_NW = nano_tower._words(data / "flickr8k", "val")
    assert words_NW.shape == (3, 3)
    torch.testing.assert_close(words_NW, expected[[0, 1, 0], 1:])
    monkeypatch.setattr(nano_tower, "RARE", 13)
    assert nano_tower._words(data / "flickr8k", "train").shape == (24, 0)


def test_a_tower_learns_further(
    small: Small, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the words of captions; the projector stays what it is."""
    monkeypatch.setattr(nano_tower, "RARE", 12)
    monkeypatch.setattr(nano_tower, "open_teacher", lambda folder, numbers: (teacher, None))
    repair(data, tmp_path / "out", start=small.checkpoint)
    made, start = load_model(tmp_path / "out" / "model"), load_model(small.checkpoint)
    assert isinstance(made, VLM)
    before = dict(start.named_parameters())
    same = {
        name for name, value in made.named_parameters() if torch.equal(value, before[name].bfloat16().float())
    }
    assert {"vit.layers.4.mlp.fc1.weight", "projector.fc1.weight"} <= same
    assert "vit.layers.11.mlp.fc1.weight" not in same
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert all(row["val_words"] > 0 for row in rows if "val_loss" in row)
