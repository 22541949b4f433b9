"""Every call of the golden chat fixtures as a published script makes it: text, ids, histories, features."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from internvl.compat import AutoConfig, AutoModel, AutoTokenizer, InternVisionModel, TextIteratorStreamer

FIXTURES = ("internvl2_5_qwen2", "internvl1_5_internlm2")
CALLS = (
    *("single", "single_no_placeholder", "round1", "round2", "round3", "multi_image", "combined_image"),
    *("video_frames", "text", "text_round2", "single_beams", "text_beams", "single_beams_lenpen"),
    *("single_reppen", "single_min_new"),
)


class Golden:
    """A fixture as a script loads it, and what the reference gave."""

    def __init__(self, folder: Path) -> None:
        path = str(folder)
        self.model = AutoModel.from_pretrained(
            path, torch_dtype=torch.float32, low_cpu_mem_usage=True, use_flash_attn=True,
            trust_remote_code=True, load_in_8bit=False, device_map=None,
        ).eval()  # fmt: skip
        self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True, use_fast=False)
        self.path = path
        self.values: dict[str, Any] = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
        self.tensors = load_file(folder / "expected.safetensors")

    def pixels(self, call: dict[str, Any]) -> Tensor | None:
        name = call["pixel_values"]
        if name is None or name in self.tensors:
            return self.tensors.get(name)
        return torch.cat((self.tensors["pixel_values_1"], self.tensors["pixel_values_2"]))


@pytest.fixture(scope="module", params=FIXTURES)
def golden(request: pytest.FixtureRequest, golden_dir: Path) -> Golden:
    return Golden(golden_dir / request.param)


@pytest.mark.parametrize("name", CALLS)
def test_chat(golden: Golden, name: str) -> None:
    call = golden.values[name]
    history = [tuple(pair) for pair in call["history_in"]] if call["history_in"] else None
    before = copy.deepcopy((history, call["generation_config"]))
    response, new = golden.model.chat(
        golden.tokenizer,
        golden.pixels(call),
        call["question"],
        call["generation_config"],
        history=history,
        return_history=True,
        num_patches_list=call["num_patches_list"],
    )
    assert response == call["response"]
    # The recorded history is one list that later rounds went on filling.
    assert [list(pair) for pair in new] == call["history_out"][: len(new)]
    assert len(new) == len(history or ()) + 1
    assert (history, call["generation_config"]) == before


@pytest.mark.parametrize("name", ["batch", "batch_beams"])
@pytest.mark.parametrize("entries", ["num_patches_list", "image_counts"])
def test_batch_chat(golden: Golden, name: str, entries: str) -> None:
    call = golden.values[name]
    responses = golden.model.batch_chat(
        golden.tokenizer,
        golden.pixels(call),
        questions=call["questions"],
        generation_config=call["generation_config"],
        **{entries: call["num_patches_list"]},
    )
    assert responses == call["responses"]


def test_batch_chat_of_2024_05_by_position(golden: Golden) -> None:
    call = golden.values["batch"]
    pixels, counts = golden.pixels(call), call["num_patches_list"]
    responses = golden.model.batch_chat(
        golden.tokenizer, pixels, counts, call["questions"], call["generation_config"]
    )
    assert responses == call["responses"]


def test_three_rounds_carried_by_the_script(golden: Golden) -> None:
    """The pixels are passed each time, and their vision tokens computed once."""
    history, misses = None, golden.model.chat_model.vision_cache.num_misses
    golden.model.chat_model.vision_cache.clear()
    for name in ("round1", "round2", "round3"):
        call = golden.values[name]
        response, history = golden.model.chat(
            golden.tokenizer,
            golden.pixels(call),
            call["question"],
            call["generation_config"],
            history=history,
            return_history=True,
        )
        assert response == call["response"]
    assert golden.model.chat_model.vision_cache.num_misses == misses + 1


def test_history_of_2024_05_with_pictures_written_out(golden: Golden) -> None:
    call = golden.values["round2"]
    tokens = golden.model.num_image_token * len(golden.pixels(call))
    written = "<img>" + "<IMG_CONTEXT>" * tokens + "</img>"
    history = [(question.replace("<image>", written), answer) for question, answer in call["history_in"]]
    response, new = golden.model.chat(
        golden.tokenizer, golden.pixels(call), call["question"], call["generation_config"], history, True
    )
    assert response == call["response"]
    assert [list(pair) for pair in new] == call["history_out"][:2]


@pytest.mark.parametrize("name", ["single", "text", "video_frames", "single_min_new"])
def test_streaming(golden: Golden, name: str) -> None:
    call = golden.values[name]
    streamer = TextIteratorStreamer(golden.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=10)
    settings = {**call["generation_config"], "streamer": streamer}
    arguments = {
        "tokenizer": golden.tokenizer,
        "pixel_values": golden.pixels(call),
        "question": call["question"],
        "history": None,
        "return_history": False,
        "generation_config": settings,
        "num_patches_list": call["num_patches_list"],
    }
    thread = Thread(target=golden.model.chat, kwargs=arguments)
    thread.start()
    text = ""
    for piece in streamer:
        if piece == golden.model.conv_template.sep:
            break
        text += piece
    thread.join()
    assert text.strip() == call["response"]


@pytest.mark.parametrize("name", CALLS)
def test_generate(golden: Golden, name: str) -> None:
    call = golden.values[name]
    ids = golden.model.generate(
        pixel_values=golden.pixels(call),
        input_ids=torch.tensor([call["input_ids"]]),
        attention_mask=torch.ones(1, len(call["input_ids"]), dtype=torch.long),
        **call["generation_config"],
        eos_token_id=call["eos_token_id"],
    )
    assert ids.dtype == torch.long
    assert ids.tolist() == [call["new_token_ids"]]


@pytest.mark.parametrize("name", ["batch", "batch_beams"])
@pytest.mark.parametrize("by_features", [False, True])
def test_generate_of_padded_prompts(golden: Golden, name: str, by_features: bool) -> None:
    call = golden.values[name]
    pixels = golden.pixels(call)
    ids = golden.model.generate(
        pixel_values=pixels,
        input_ids=torch.tensor(call["input_ids"]),
        attention_mask=torch.tensor(call["attention_mask"]),
        visual_features=golden.model.extract_feature(pixels) if by_features else None,
        generation_config=call["generation_config"],
    )
    assert ids.tolist() == call["new_token_ids"]
    texts = golden.tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert [text.strip() for text in texts] == call["responses"]


def test_attributes(golden: Golden) -> None:
    settings, config = golden.values["settings"], golden.model.config
    assert golden.model.num_image_token == settings["num_image_token"]
    assert golden.model.img_context_token_id == settings["img_context_token_id"]
    assert golden.tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>") == settings["img_context_token_id"]
    assert golden.model.system_message == settings["system_message"]
    assert golden.model.template == golden.model.config.template == settings["template"]
    assert golden.model.conv_template.sep.strip() == "<|im_end|>"
    written = json.loads((Path(golden.path) / "config.json").read_text(encoding="utf-8"))
    names = ("force_image_size", "downsample_ratio", "use_thumbnail", "max_dynamic_patch", "ps_version")
    for one in (config, AutoConfig.from_pretrained(golden.path, trust_remote_code=True)):
        assert {name: getattr(one, name) for name in names} == {name: written[name] for name in names}
        assert one.vision_config.image_size == written["vision_config"]["image_size"]
        assert one.llm_config.num_hidden_layers == written["llm_config"]["num_hidden_layers"]


def test_features(golden: Golden) -> None:
    expected, pixels = golden.tensors, golden.tensors["pixel_values_1"]
    torch.testing.assert_close(
        golden.model.extract_feature(pixels), expected["extract_feature"], atol=1e-4, rtol=1e-4
    )
    outputs = golden.model.vision_model(pixels)
    torch.testing.assert_close(
        outputs.last_hidden_state, expected["vit.last_hidden_state"], atol=1e-4, rtol=1e-4
    )


def test_tokenizer(golden: Golden) -> None:
    for case in golden.values["tokenizer"]["cases"]:
        found = golden.tokenizer(case["text"], return_tensors="pt")
        assert found["input_ids"].tolist() == [case["input_ids"]]
        assert found.attention_mask.tolist() == [[1] * len(case["input_ids"])]
        assert golden.tokenizer.encode(case["text"]) == case["input_ids"]
        decoded = golden.tokenizer.decode(found.input_ids[0], skip_special_tokens=True)
        assert decoded == case["decoded_skip_special"]
        assert golden.tokenizer.decode(case["input_ids"]) == case["decoded"]


def test_vision_tower_alone(golden_dir: Path) -> None:
    folder = golden_dir / "internvit_300m"
    model = AutoModel.from_pretrained(folder, torch_dtype=torch.float32, trust_remote_code=True).eval()
    assert isinstance(model, InternVisionModel)
    expected = load_file(folder / "expected.safetensors")
    for name in (key.removesuffix(".pixel_values") for key in expected if key.endswith(".pixel_values")):
        with torch.no_grad():
            outputs = model(expected[f"{name}.pixel_values"], output_hidden_states=True)
        for field in ("last_hidden_state", "pooler_output"):
            torch.testing.assert_close(outputs[field], expected[f"{name}.{field}"], atol=1e-4, rtol=1e-4)
        for index, state in enumerate(outputs.hidden_states):
            torch.testing.assert_close(state, expected[f"{name}.hidden_states.{index}"], atol=1e-4, rtol=1e-4)
