"""How well a tower tells pictures apart: neighbours and a linear classifier on its frozen features.

    python -m internvl.recipes.nano_probe DATA MODEL [--layer -1 -4] [--out probe.json]

DATA holds `tiny-imagenet/train.zip` and `flickr8k/` (train.jsonl, val.jsonl, pictures). Measured on pictures
that the distillation of `nano_tower` did not use: the last of each ImageNet class by name, and photos of the
validation split whose captions name one of six things. Labelled training examples are from the rest.
"""

from __future__ import annotations

import io
import json
import re
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from internvl.checkpoints.load import load_vision
from internvl.errors import InputError
from internvl.evaluation.probe import accuracy, nearest_neighbours, ridge
from internvl.models.vit import VisionTower
from internvl.recipes.crops import view
from internvl.recipes.nano_tower import HELD_BACK

CLASS_STEP = 8
"""Every eighth of the 200 ImageNet classes: 25."""

TRAIN_PER_CLASS = 30
PHOTOS_PER_CLASS: Mapping[str, int] = {"train": 60, "val": 20}
WORDS: Mapping[str, str] = {
    "ball": "balls?",
    "bike": "bikes?",
    "climb": "climb(s|ing|ers?|ed)?",
    "dog": "dogs?",
    "snow": "snowy?",
    "water": "water",
}
MENTIONS = 2
"""Captions, of five, that must name the thing; none may name another of the six."""

NEIGHBOURS = 5
BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Encoded pictures and the numbers of their classes."""

    encoded: Sequence[bytes]
    labels_N: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is learnt from and what is measured on, at some sizes of picture in pixels."""

    name: str
    train: Labelled
    test: Labelled
    sizes: tuple[int, ...]


def probe(
    data: Path, model: Path, layer: tuple[int, ...] = (-1,), out: Path | None = None
) -> list[dict[str, Any]]:
    """A row for each task, size, hidden state and kind of feature; written to `out` if given."""
    tower = load_vision(model)
    tasks = (_small_pictures(data / "tiny-imagenet" / "train.zip"), _photos(data / "flickr8k"))
    rows = [row for task in tasks for size in task.sizes for row in measure(tower, task, size, layer)]
    if out is not None:
        partial = out.with_suffix(".partial")
        partial.write_text(json.dumps({"model": str(model), "rows": rows}, indent=2), encoding="utf-8")
        partial.replace(out)
    return rows


def measure(tower: VisionTower, task: Task, size: int, layers: Sequence[int]) -> list[dict[str, Any]]:
    """Both accuracies (0 to 1) of each hidden state and kind of feature of a task."""
    train, test = (_features(tower, one.encoded, size, layers) for one in (task.train, task.test))
    labels = task.train.labels_N
    return [
        {
            "task": task.name,
            "size": size,
            "layer": layer,
            "feature": kind,
            "train": len(labels),
            "test": len(task.test.labels_N),
            "classes": len(labels.unique()),
            "knn": accuracy(
                nearest_neighbours(features, labels, test[layer, kind], NEIGHBOURS), task.test.labels_N
            ),
            "ridge": accuracy(ridge(features, labels, test[layer, kind]), task.test.labels_N),
        }
        for (layer, kind), features in train.items()
    ]


@torch.inference_mode()
def _features(
    tower: VisionTower, encoded: Sequence[bytes], size: int, layers: Sequence[int]
) -> dict[tuple[int, str], Tensor]:
    """(N, F) by hidden state and kind: mean of the patches, class token, both at unit length."""
    found: dict[tuple[int, str], list[Tensor]] = {}
    for start in range(0, len(encoded), BATCH):
        tiles_N3HW = torch.stack([view(one, size)[0] for one in encoded[start : start + BATCH]])
        states = tower.hidden_states(tiles_N3HW)
        for layer in layers:
            state_NPC = states[layer].float()
            class_NC, patches_NC = state_NPC[:, 0], state_NPC[:, 1:].mean(1)
            both_NF = torch.cat((normalize(patches_NC), normalize(class_NC)), 1)
            for kind, value in {"patches": patches_NC, "class": class_NC, "both": both_NF}.items():
                found.setdefault((layer, kind), []).append(value)
    return {key: torch.cat(values) for key, values in found.items()}


def _small_pictures(archive: Path) -> Task:
    """Some classes of ImageNet: the first of each class are learnt from, those held back are measured on."""
    with zipfile.ZipFile(archive) as pictures:
        by_class: dict[str, list[str]] = {}
        for name in sorted(name for name in pictures.namelist() if name.endswith(".JPEG")):
            by_class.setdefault(name.split("/")[0], []).append(name)
        chosen = list(by_class.values())[::CLASS_STEP]
        fewest = min(map(len, chosen), default=0)
        if fewest < TRAIN_PER_CLASS + HELD_BACK:
            raise InputError(
                f"{archive} has {fewest} pictures of a class: {TRAIN_PER_CLASS + HELD_BACK} needed"
            )
        train, test = (
            Labelled(
                encoded=[pictures.read(name) for names in chosen for name in names[places]],
                labels_N=torch.tensor([label for label, names in enumerate(chosen) for _ in names[places]]),
            )
            for places in (slice(TRAIN_PER_CLASS), slice(-HELD_BACK, None))
        )
    return Task(name="tiny-imagenet", train=train, test=test, sizes=(112, 224))


def _photos(folder: Path) -> Task:
    """Photos of one thing each."""
    train, test = (
        _named(folder, split, PHOTOS_PER_CLASS[split], list(WORDS.values())) for split in ("train", "val")
    )
    return Task(name="flickr8k words", train=train, test=test, sizes=(224,))


def _named(folder: Path, split: str, count: int, words: Sequence[str]) -> Labelled:
    """The first photos of a split for each word. Raises InputError when there are too few."""
    patterns = [re.compile(rf"\b{word}\b", re.IGNORECASE) for word in words]
    found: list[list[bytes]] = [[] for _ in words]
    with (folder / f"{split}.jsonl").open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            mentions = [sum(bool(one.search(text)) for text in row["en"]) for one in patterns]
            label = max(range(len(words)), key=mentions.__getitem__)
            is_one = mentions[label] >= MENTIONS and sum(map(bool, mentions)) == 1
            if is_one and len(found[label]) < count:
                found[label].append((folder / row["image"]).read_bytes())
    fewest = min(map(len, found))
    if fewest < count:
        raise InputError(f"{folder / split}.jsonl has only {fewest} photos for a word, {count} are needed")
    encoded = [one for photos in found for one in photos]
    return Labelled(encoded=encoded, labels_N=torch.arange(len(words)).repeat_interleave(count))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table."""
    columns = ("task", "size", "layer", "feature", "train", "test", "classes", "knn", "ridge")
    text = io.StringIO()
    for cells in (columns, ("---",) * len(columns), *([row[name] for name in columns] for row in rows)):
        shown = (f"{one:.3f}" if isinstance(one, float) else str(one) for one in cells)
        text.write(f"| {' | '.join(shown)} |\n")
    return text.getvalue()


if __name__ == "__main__":
    import tyro

    sys.stdout.write(table(tyro.cli(probe, config=(tyro.conf.PositionalRequiredArgs,))))
