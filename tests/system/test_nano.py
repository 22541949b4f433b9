"""The default model by its name: it answers, and describes held-out photos about as well as its card says."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import internvl
from internvl import ChatModel
from internvl.evaluation.scores import cider_d

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "Provide a one-sentence caption for the provided image."
NUM_PHOTOS = 60


@pytest.fixture(scope="module")
def nano() -> ChatModel:
    model = internvl.load("nano", offline=False)
    assert isinstance(model, ChatModel)
    return model


@pytest.mark.slow
def test_it_describes_the_example_pictures(nano: ChatModel) -> None:
    pictures = sorted((ROOT / "examples" / "images").glob("*.jpg"))
    assert len(pictures) >= 3
    replies = nano.chat_batch(
        [
            {"prompt": "Describe this photo.", "images": [picture], "max_new_tokens": 40}
            for picture in pictures
        ]
    )
    for reply in replies:
        assert reply.finish_reason == "stop"
        assert 3 <= len(reply.text.split()) <= 40
    assert len({reply.text for reply in replies}) == len(replies)


@pytest.mark.slow
def test_held_out_captions(nano: ChatModel) -> None:
    """The card's CIDEr-D is of 1,000 photos; this guards against a broken tower, tokenizer or template."""
    chosen = os.environ.get("INTERNVL_DATA")
    data = (Path(chosen) if chosen else ROOT.parent / "shared" / "data") / "flickr8k"
    if not (data / "val.jsonl").is_file():
        pytest.skip(f"DATA MISSING: {data} holds no Flickr8k validation split (set INTERNVL_DATA)")
    with (data / "val.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:NUM_PHOTOS]
    requests = [
        {"prompt": PROMPT, "images": [_picture(data, row["image"])], "max_new_tokens": 30} for row in rows
    ]
    answers = [
        reply.text
        for start in range(0, NUM_PHOTOS, 20)
        for reply in nano.chat_batch(requests[start : start + 20])
    ]
    score, _ = cider_d(answers, [row["en"] for row in rows])
    assert score > 0.4, f"CIDEr-D {score:.3f}"


def _picture(data: Path, name: str) -> Path:
    return data / name if (data / name).is_file() else data / "images" / name
