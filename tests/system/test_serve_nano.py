"""The default model behind a live server, asked by the official client."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from openai import OpenAI

import internvl
from internvl import ChatModel
from internvl.serving.app import make_app
from internvl.serving.settings import Settings
from tests.serving.conftest import serving

ROOT = Path(__file__).resolve().parents[2]
QUESTION = "Describe this photo."


@pytest.mark.slow
def test_nano_answers_as_it_does_without_a_server() -> None:
    model = internvl.load("nano", offline=False)
    assert isinstance(model, ChatModel)
    photo = ROOT / "examples" / "images" / "cat.jpg"
    expected = model.chat(QUESTION, images=[photo], max_new_tokens=30)
    url = f"data:image/jpeg;base64,{base64.b64encode(photo.read_bytes()).decode()}"
    with (
        serving(make_app(model, Settings(served_names=("nano",)))) as address,
        OpenAI(base_url=f"{address}/v1", api_key="none", timeout=300) as client,
    ):
        chunks = client.chat.completions.create(
            model="nano",
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": url}},
                        {"type": "text", "text": QUESTION},
                    ],
                }
            ],
            max_tokens=30,
            stream=True,
            stream_options={"include_usage": True},
        )
        pieces, used = [], None
        for chunk in chunks:
            pieces += [choice.delta.content or "" for choice in chunk.choices]
            used = chunk.usage or used
    assert "".join(pieces).strip() == expected.text
    assert used is not None
    assert used.prompt_tokens == expected.usage.prompt_tokens
    assert used.completion_tokens == expected.usage.new_tokens
