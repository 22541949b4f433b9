"""The small dual encoder by its name: it finds held-out photos about as well as its card says."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import internvl
from internvl import ContrastiveModel
from internvl.evaluation.retrieval import recall

ROOT = Path(__file__).resolve().parents[2]
NUM_PHOTOS = 100


@pytest.fixture(scope="module")
def model() -> ContrastiveModel:
    found = internvl.load("nano-c", offline=False)
    assert isinstance(found, ContrastiveModel)
    return found


@pytest.mark.slow
def test_it_tells_the_example_pictures_apart(model: ContrastiveModel) -> None:
    """Its world is small: people and animals outdoors."""
    pictures = [ROOT / "examples" / "images" / name for name in ("astronaut.jpg", "cat.jpg")]
    for mode in ("C", "G"):
        logits_BT = model.logits(pictures, ["a smiling woman", "a grey cat looks up"], mode)
        assert logits_BT.argmax(-1).tolist() == [0, 1]
    captions = model.caption(pictures)
    assert all(len(caption.split()) >= 3 for caption in captions)


@pytest.mark.slow
def test_held_out_photos_are_found(model: ContrastiveModel) -> None:
    """The card's numbers are of 1,000 photos; this guards against a broken tower, tokenizer or pool."""
    chosen = os.environ.get("INTERNVL_DATA")
    data = (Path(chosen) if chosen else ROOT.parent / "shared" / "data") / "flickr8k"
    if not (data / "val.jsonl").is_file():
        pytest.skip(f"DATA MISSING: {data} holds no Flickr8k validation split (set INTERNVL_DATA)")
    with (data / "val.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:NUM_PHOTOS]
    pictures = [_picture(data, row["image"]) for row in rows]
    numbers = torch.arange(NUM_PHOTOS)
    for mode in ("C", "G"):
        images_IE = model.embed_images(pictures, mode)
        for language, least in (("en", 0.65), ("zh", 0.5)):
            texts_TE = model.embed_texts([row[language][0] for row in rows])
            found = recall(images_IE, texts_TE, numbers)
            assert found.text_to_image[10] > least, (mode, language, found)


def _picture(data: Path, name: str) -> Path:
    return data / name if (data / name).is_file() else data / "images" / name
