"""Every call of the golden chat fixtures through the public API: strings, ids, features, logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import internvl
from internvl.processing.tiles import Tiles
from internvl.processing.tiling import Grid

FIXTURES = ("internvl2_5_qwen2", "internvl1_5_internlm2")
CALLS = (
    *("single", "single_no_placeholder", "round1", "round2", "round3", "multi_image", "combined_image"),
    *("video_frames", "text", "text_round2", "single_beams", "text_beams", "single_beams_lenpen"),
    *("single_reppen", "single_min_new"),
)


class Golden:
    """A fixture: the model loaded from it, and what the reference gave."""

    def __init__(self, folder: Path) -> None:
        self.model = internvl.load(folder)
        self.values: dict[str, Any] = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
        self.tensors = load_file(folder / "expected.safetensors")

    def pictures(self, call: dict[str, Any]) -> list[Tiles]:
        """The ready tiles of a call, one `Tiles` for each entry of `num_patches_list`."""
        name = call["pixel_values"]
        if name is None:
            return []
        first, second = self.tensors["pixel_values_1"], self.tensors["pixel_values_2"]
        both = torch.cat((first, second))
        tiles = {"pixel_values_1": first, "pixel_values_2": second}.get(name, both)
        return [as_picture(part) for part in tiles.split(call["num_patches_list"] or len(tiles))]


def as_picture(tiles: Tensor) -> Tiles:
    key = f"{tuple(tiles.shape)} {tiles.double().sum().item()}"
    return Tiles(tiles_N3HW=tiles, grid=Grid(len(tiles), 1), width=100, height=100, key=key)


def sampling(call: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in call["generation_config"].items() if name != "do_sample"}


@pytest.fixture(scope="module", params=FIXTURES)
def golden(request: pytest.FixtureRequest, golden_dir: Path) -> Golden:
    return Golden(golden_dir / request.param)


@pytest.mark.parametrize("name", CALLS)
def test_calls(golden: Golden, name: str) -> None:
    call = golden.values[name]
    history = [(question, answer) for question, answer in call["history_in"] or ()]
    pictures = golden.pictures(call)
    explained = golden.model.explain(call["question"], pictures, history=history, **sampling(call))
    assert explained.text == call["prompt"]
    assert list(explained.ids) == call["input_ids"]
    reply = golden.model.chat(call["question"], pictures, history=history, **sampling(call))
    assert reply.text == call["response"]
    assert list(reply.ids) == call["new_token_ids"]
    rounds = [message.text for message in reply.history.messages]
    # The recorded history is one list that later rounds went on filling.
    assert rounds == [side for pair in call["history_out"] for side in pair][: len(rounds)]
    if "sequences_scores" in call:
        assert reply.score == pytest.approx(call["sequences_scores"][0], abs=1e-4)


@pytest.mark.parametrize("name", ["batch", "batch_beams"])
def test_batches(golden: Golden, name: str) -> None:
    call = golden.values[name]
    tiles = torch.cat((golden.tensors["pixel_values_1"], golden.tensors["pixel_values_2"]))
    requests = [
        {"prompt": question, "images": [as_picture(part)], **sampling(call)}
        for question, part in zip(call["questions"], tiles.split(call["num_patches_list"]), strict=True)
    ]
    assert [reply.text for reply in golden.model.chat_batch(requests)] == call["responses"]


def test_rounds_continue_from_the_reply(golden: Golden) -> None:
    """`history=reply.history` needs no pictures again and encodes none again."""
    calls = [golden.values[name] for name in ("round1", "round2", "round3")]
    reply = golden.model.chat(calls[0]["question"], golden.pictures(calls[0]), **sampling(calls[0]))
    misses = golden.model.vision_cache.num_misses
    for call in calls[1:]:
        reply = golden.model.chat(call["question"], history=reply.history, **sampling(call))
        assert reply.text == call["response"]
    assert golden.model.vision_cache.num_misses == misses


def test_streamed_text_is_the_answer(golden: Golden) -> None:
    call = golden.values["single"]
    stream = golden.model.stream(call["question"], golden.pictures(call), **sampling(call))
    assert "".join(stream).strip() == call["response"]
    assert list(stream.reply.ids) == call["new_token_ids"]


def test_generate_from_ids(golden: Golden) -> None:
    call = golden.values["single"]
    ids = golden.model.generate(call["input_ids"], golden.tensors["pixel_values_1"], **sampling(call))
    assert ids == call["new_token_ids"]


def test_tensors(golden: Golden) -> None:
    expected, close = golden.tensors, {"atol": 1e-4, "rtol": 1e-4}
    tiles = expected["pixel_values_1"]
    states = golden.model.vision_states(tiles)
    for index, state in enumerate(states):
        torch.testing.assert_close(state, expected[f"vit.hidden_states.{index}"], **close)
    torch.testing.assert_close(states[-1], expected["vit.last_hidden_state"], **close)
    torch.testing.assert_close(states[-1][:, 0], expected["vit.pooler_output"], **close)
    torch.testing.assert_close(golden.model.encode_tiles(tiles), expected["extract_feature"], **close)
    second = golden.model.encode_tiles(expected["pixel_values_2"])
    torch.testing.assert_close(second, expected["extract_feature_2"], **close)
    single = golden.model.logits(golden.values["single"]["input_ids"], tiles)
    torch.testing.assert_close(single, expected["single.logits"][0], **close)
    text = golden.model.logits(golden.values["text"]["input_ids"])
    torch.testing.assert_close(text, expected["text.logits"][0], **close)


def test_last_logits_of_a_batch_equal_those_alone(golden: Golden) -> None:
    """The reference pads on the left; here nothing is padded and the last position is the same."""
    call = golden.values["batch"]
    tiles = torch.cat((golden.tensors["pixel_values_1"], golden.tensors["pixel_values_2"]))
    parts = tiles.split(call["num_patches_list"])
    for row, (ids, part) in enumerate(zip(call["input_ids"], parts, strict=True)):
        mask = call["attention_mask"][row]
        kept = [id for id, is_real in zip(ids, mask, strict=True) if is_real]
        last = golden.model.logits(kept, part)[-1]
        torch.testing.assert_close(last, golden.tensors["batch.last_logits"][row], atol=1e-4, rtol=1e-4)


def test_vision_tower_alone(golden_dir: Path) -> None:
    folder = golden_dir / "internvit_300m"
    model, expected = internvl.load(folder), load_file(folder / "expected.safetensors")
    names = {key.removesuffix(".pixel_values") for key in expected if key.endswith(".pixel_values")}
    assert len(names) >= 4
    for name in names:
        states = model.vision_states(expected[f"{name}.pixel_values"])
        torch.testing.assert_close(states[0], expected[f"{name}.embeddings"], atol=1e-4, rtol=1e-4)
        for index, state in enumerate(states):
            torch.testing.assert_close(state, expected[f"{name}.hidden_states.{index}"], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(states[-1][:, 0], expected[f"{name}.pooler_output"], atol=1e-4, rtol=1e-4)
