"""Files beside the weights: what other programs look for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from internvl.checkpoints.load import build
from internvl.checkpoints.side_files import write_side_files
from internvl.checkpoints.write import save_model
from internvl.config import ChatConfig, VisionConfig
from internvl.errors import CheckpointError, ConfigError
from tests.checkpoints.tiny import SMALL_VIT, chat_config, chat_json, of, vision_json, write_json

TOKENIZER = {
    "tokenizer_class": "Qwen2Tokenizer",
    "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
    "chat_template": "{{ old }}",
    "added_tokens_decoder": {"31": {"content": "<img>"}, "33": {"content": "<IMG_CONTEXT>"}},
}


def source(tmp_path: Path, *, code: bool = False, **changes: Any) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    values = {**chat_json(chat_config("qwen2"), "qwen2"), **changes}
    if code:
        (directory / "modeling_internvl_chat.py").write_text("# code\n")
        (directory / "configuration_internvl_chat.py").write_text("# code\n")
        values["auto_map"] = {"AutoModel": "modeling_internvl_chat.InternVLChatModel"}
    write_json(values, directory / "config.json")
    write_json(TOKENIZER, directory / "tokenizer_config.json")
    write_json({"eos_token_id": [2, 3]}, directory / "generation_config.json")
    (directory / "tokenizer.model").write_bytes(b"\0model")
    (directory / "setup.py").write_text("danger")
    (directory / "README.md").write_text("card")
    (directory / "optimizer.pt").write_bytes(b"x")
    return directory


def written(tmp_path: Path, layout: str, given: Path | None, **changes: Any) -> dict[str, Any]:
    """The names of the files written, with the contents of the JSON ones."""
    directory = tmp_path / f"out-{layout}"
    directory.mkdir()
    config: ChatConfig | VisionConfig = changes.pop("config", chat_config("qwen2"))
    family = of("qwen2") if isinstance(config, ChatConfig) else None
    write_side_files(config, family, directory, layout=layout, dtype=torch.bfloat16, source=given, **changes)
    return {
        path.name: json.loads(path.read_text()) if path.suffix == ".json" else path.read_bytes()
        for path in directory.iterdir()
    }


def test_official_files(tmp_path: Path) -> None:
    files = written(tmp_path, "official", source(tmp_path))
    assert set(files) == {
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer.model",
        "tokenizer_config.json",
    }
    assert files["tokenizer_config.json"] == TOKENIZER
    assert files["generation_config.json"] == {"eos_token_id": [2, 3]}
    assert files["preprocessor_config.json"]["crop_size"] == 56
    assert files["preprocessor_config.json"]["image_mean"] == [0.485, 0.456, 0.406]
    assert files["config.json"]["torch_dtype"] == "bfloat16"
    assert files["config.json"]["tie_word_embeddings"] is False


def test_code_that_came_with_the_model_goes_with_it(tmp_path: Path) -> None:
    files = written(tmp_path, "official", source(tmp_path, code=True))
    assert "modeling_internvl_chat.py" in files
    assert "setup.py" not in files
    assert files["config.json"]["auto_map"] == {"AutoModel": "modeling_internvl_chat.InternVLChatModel"}


def test_without_code_the_published_one_is_named(tmp_path: Path) -> None:
    """An `auto_map` to files that are not there is what training runs leave behind."""
    dangling = {"auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"}}
    files = written(tmp_path, "official", source(tmp_path, **dangling))
    assert files["config.json"]["auto_map"] == {
        "AutoConfig": "OpenGVLab/InternVL2_5-1B--configuration_internvl_chat.InternVLChatConfig",
        "AutoModel": "OpenGVLab/InternVL2_5-1B--modeling_internvl_chat.InternVLChatModel",
        "AutoModelForCausalLM": "OpenGVLab/InternVL2_5-1B--modeling_internvl_chat.InternVLChatModel",
    }


def test_a_tower_names_its_own_code(tmp_path: Path) -> None:
    files = written(tmp_path, "official", None, config=SMALL_VIT)
    assert files["config.json"]["auto_map"]["AutoModel"].endswith("modeling_intern_vit.InternVisionModel")
    assert set(files) == {"config.json", "preprocessor_config.json"}


def test_a_tower_out_of_a_chat_model(tmp_path: Path) -> None:
    files = written(tmp_path, "official", source(tmp_path), config=SMALL_VIT)
    assert files["config.json"]["image_size"] == 56
    assert "llm_config" not in files["config.json"]


def test_hf_files(tmp_path: Path) -> None:
    files = written(tmp_path, "hf", source(tmp_path, code=True))
    assert set(files) == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "video_preprocessor_config.json",
    }
    assert files["config.json"]["image_token_id"] == 33
    assert files["config.json"]["text_config"]["eos_token_id"] == 2
    assert files["preprocessor_config.json"]["max_patches"] == 6
    assert files["processor_config.json"]["image_seq_length"] == 4
    tokenizer = files["tokenizer_config.json"]
    assert tokenizer["extra_special_tokens"]["context_image_token"] == "<IMG_CONTEXT>"
    assert "auto_map" not in tokenizer
    assert "chat_template" not in tokenizer


def test_the_id_of_the_image_token(tmp_path: Path) -> None:
    given = source(tmp_path)
    assert written(tmp_path, "hf", given, image_token_id=7)["config.json"]["image_token_id"] == 7
    write_json({"<IMG_CONTEXT>": 35, "<img>": 3}, given / "added_tokens.json")
    (tmp_path / "again").mkdir()
    assert written(tmp_path / "again", "hf", given)["config.json"]["image_token_id"] == 35


def test_an_image_token_that_nobody_knows(tmp_path: Path) -> None:
    given = source(tmp_path)
    write_json({"added_tokens_decoder": {}}, given / "tokenizer_config.json")
    with pytest.raises(ConfigError, match=r"id of <IMG_CONTEXT>: pass extra_files_from=.* or image_token_id"):
        written(tmp_path, "hf", given)


def test_names_of_tokenizer_files_stay_in_the_directory(tmp_path: Path) -> None:
    files = written(tmp_path, "official", None, tokenizer_files={"../../vocab.json": b"{}"})
    assert files["vocab.json"] == {}
    assert not (tmp_path.parent / "vocab.json").exists()


def test_a_source_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = source(tmp_path)

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(CheckpointError, match=r"cannot read .*generation_config.json: Permission denied"):
        written(tmp_path, "official", given)


def test_without_a_source_generation_knows_no_ids(tmp_path: Path) -> None:
    files = written(tmp_path, "official", None)
    assert files["generation_config.json"] == {"_from_model_config": True}


def test_the_chat_template_says_what_the_system_message_is(tmp_path: Path) -> None:
    config = chat_config("qwen2", system_message='Say "hi".')
    files = written(tmp_path, "hf", source(tmp_path), config=config)
    assert b'Say \\"hi\\".' in files["chat_template.jinja"]


def test_every_template_has_a_chat_template(tmp_path: Path) -> None:
    """Its own system message included; `tests/parity` compares what it renders."""
    given = source(tmp_path)
    write_json({"chat_template": "{{ older }}"}, given / "chat_template.json")
    files = written(tmp_path, "hf", given, config=chat_config("qwen2", template="phi3-chat@2024-05"))
    assert b"You are an AI assistant whose name is Phi-3." in files["chat_template.jinja"]
    assert "chat_template.json" not in files
    assert "chat_template" not in files["tokenizer_config.json"]


def test_the_chat_template_of_the_source_stays_with_an_unknown_template(tmp_path: Path) -> None:
    files = written(tmp_path, "hf", source(tmp_path), config=chat_config("qwen2", template="theirs"))
    assert "chat_template.jinja" not in files
    assert files["tokenizer_config.json"]["chat_template"] == "{{ old }}"


def test_a_trained_run_becomes_self_contained(tmp_path: Path) -> None:
    """Adapter ranks do not survive: the saved weights are merged."""
    given = source(tmp_path, use_backbone_lora=16, use_llm_lora=16)
    config = chat_config("qwen2")
    model = build(config).to_empty(device="cpu")
    save_model(model, config, tmp_path / "saved", extra_files_from=given)
    found = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (found["use_backbone_lora"], found["use_llm_lora"]) == (0, 0)


def test_a_tower_keeps_the_fields_of_its_source(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    write_json({**vision_json(SMALL_VIT), "their_own": 5}, tmp_path / "source" / "config.json")
    files = written(tmp_path, "official", tmp_path / "source", config=SMALL_VIT)
    assert files["config.json"]["their_own"] == 5
