"""Everything beside the weights: configuration, preprocessing, generation defaults, tokenizer, code.

Knows which files each layout wants and what other programs look for in them. Writes no weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from internvl.chat_templates import TEMPLATES
from internvl.checkpoints.chat_config import write_chat, write_hf_chat, write_llava
from internvl.checkpoints.chat_jinja import chat_jinja
from internvl.checkpoints.configs import describe_normalization
from internvl.checkpoints.contrastive_config import write_contrastive
from internvl.checkpoints.fields import Fields
from internvl.checkpoints.layouts import PUBLISHED_CONTRASTIVE_CODE, PUBLISHED_VISION_CODE, Family
from internvl.checkpoints.read import read_json
from internvl.checkpoints.shards import write_json
from internvl.checkpoints.text_config import CARRIED, write_text
from internvl.checkpoints.vision_config import write_hf_vision, write_vision
from internvl.config import (
    IMG_CONTEXT,
    IMG_END,
    IMG_START,
    NORMALIZATION_STATISTICS,
    ChatConfig,
    ContrastiveConfig,
    Normalization,
    TextConfig,
    VisionConfig,
)
from internvl.errors import CheckpointError, ConfigError

COPIED = re.compile(
    r"(tokenizer|special_tokens_map|added_tokens|vocab|merges|chat_template|generation_config|LICENSE|NOTICE)"
    r"(_config)?(\.(json|model|txt|jinja|md))?"
)
CODE = re.compile(r"(configuration|modeling|tokenization|conversation)\w*\.py")

HF_TOKENS: Mapping[str, str] = {
    "start_image_token": IMG_START,
    "end_image_token": IMG_END,
    "context_image_token": IMG_CONTEXT,
    "video_token": "<video>",
}
"""What transformers' InternVLProcessor asks its tokenizer for."""


def write_side_files(
    config: ChatConfig | ContrastiveConfig | VisionConfig | TextConfig,
    family: Family | None,
    directory: Path,
    *,
    layout: str,
    dtype: torch.dtype,
    source: Path | None,
    tokenizer_files: Mapping[str, bytes] | None = None,
    image_token_id: int | None = None,
    normalization: Normalization | None = None,
) -> None:
    """All files of a checkpoint but its weights. `source` is the directory it came from, if any.

    `tokenizer_files` are by name, for when there is no source. `normalization` is of a tower alone; by
    default as in `source`, else ImageNet's.

    Raises:
        ConfigError: the layout cannot express the model, or needs an id that is nowhere to be found.
        CheckpointError: a file of the source cannot be read.
    """
    if isinstance(config, TextConfig):
        _write_text_files(config, family, directory, layout=layout, dtype=dtype, source=source)
        return
    carried = dict(tokenizer_files or {}) if source is None else _files_of(source, layout)
    for name, data in carried.items():
        (directory / Path(name).name).write_bytes(data)
    given = read_json(source / "config.json") if source and (source / "config.json").is_file() else {}
    if isinstance(config, VisionConfig):
        written = _vision_json(config, layout, given)
        size, pixels = config.image_size, normalization or _normalization_of(source)
    elif family is None:
        raise ConfigError("a model is saved as one of the language-model families; none was given")
    elif isinstance(config, ContrastiveConfig):
        written = write_contrastive(config, family, given if "qllama_config" in given else {})
        size, pixels = config.image_size, config.normalization
    else:
        token = image_token_id if layout != "hf" else _image_token_id(image_token_id, given, directory)
        written = _chat_json(config, family, layout, given, token)
        size, pixels = config.tiling.tile_size, config.tiling.normalization
    written["torch_dtype"] = str(dtype).removeprefix("torch.")
    if layout in ("official", "llava"):
        _link_code(written, family, has_code=any(CODE.fullmatch(name) for name in carried))
    write_json(written, directory / "config.json")
    write_json(_preprocessor(config, layout, size, pixels), directory / "preprocessor_config.json")
    if not isinstance(config, VisionConfig):
        _write_generation(directory, given)
    if isinstance(config, ChatConfig) and layout == "hf":
        _write_processors(config, directory)


def _write_text_files(
    config: TextConfig,
    family: Family | None,
    directory: Path,
    *,
    layout: str,
    dtype: torch.dtype,
    source: Path | None,
) -> None:
    """Those of a language model alone; the code files of a chat model do not fit it."""
    for name, data in (_files_of(source, "hf") if source else {}).items():
        (directory / name).write_bytes(data)
    if family is None:
        raise ConfigError("a language model is saved as one of the families; none was given")
    given = read_json(source / "config.json") if source and (source / "config.json").is_file() else {}
    forms = (given.get(name) for name in ("llm_config", "text_config", "qllama_config"))
    base = next((form for form in forms if isinstance(form, dict)), given)
    written = write_text(config, family, base, modern=layout == "hf")
    written["torch_dtype"] = str(dtype).removeprefix("torch.")
    write_json(written, directory / "config.json")


def _normalization_of(source: Path | None) -> Normalization:
    return describe_normalization(source) if source else "imagenet"


def _chat_json(
    config: ChatConfig, family: Family, layout: str, given: Mapping[str, Any], token: int | None
) -> dict[str, Any]:
    """config.json of a chat model; `given` counts in full only when it is of the same form."""
    forms = {"official": "llm_config", "hf": "text_config"}
    is_same = forms.get(layout, "mm_projector_type") in given
    text = next((given[name] for name in forms.values() if isinstance(given.get(name), dict)), given)
    carried = {name: text[name] for name in CARRIED if name in text}
    if layout == "official":
        return write_chat(config, family, given if is_same else {"llm_config": carried})
    if layout == "llava":
        return write_llava(config, family, given if is_same else carried)
    if token is None:
        raise ConfigError(f"the hf layout records the id of {IMG_CONTEXT}: pass image_token_id")
    return write_hf_chat(config, family, given if is_same else {"text_config": carried}, token)


def _vision_json(config: VisionConfig, layout: str, given: Mapping[str, Any]) -> dict[str, Any]:
    if layout == "hf":
        return write_hf_vision(config)
    inner = given.get("vision_config")
    return write_vision(config, inner if isinstance(inner, dict) else given)


def _link_code(written: dict[str, Any], family: Family | None, *, has_code: bool) -> None:
    """Point AutoModel at the code: the files copied along, else the repository that publishes it."""
    if has_code and "auto_map" in written:
        return
    if family is None:
        place = f"{PUBLISHED_VISION_CODE}--"
        written["auto_map"] = {
            "AutoConfig": f"{place}configuration_intern_vit.InternVisionConfig",
            "AutoModel": f"{place}modeling_intern_vit.InternVisionModel",
        }
    elif "llm_config" in written:
        place = f"{family.published_code}--"
        written["auto_map"] = {
            "AutoConfig": f"{place}configuration_internvl_chat.InternVLChatConfig",
            "AutoModel": f"{place}modeling_internvl_chat.InternVLChatModel",
            "AutoModelForCausalLM": f"{place}modeling_internvl_chat.InternVLChatModel",
        }
    elif "qllama_config" in written:
        place = f"{PUBLISHED_CONTRASTIVE_CODE}--"
        written["auto_map"] = {
            "AutoConfig": f"{place}configuration_internvl.InternVLConfig",
            "AutoModel": f"{place}modeling_internvl.InternVLModel",
        }


def _files_of(source: Path, layout: str) -> dict[str, bytes]:
    """Tokenizer, licence and, where they can be used, code files of the source, by name."""
    try:
        return {
            path.name: path.read_bytes()
            for path in sorted(source.iterdir())
            if path.is_file()
            and (COPIED.fullmatch(path.name) or (layout != "hf" and CODE.fullmatch(path.name)))
        }
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename or source}: {error.strerror}") from error


def _preprocessor(
    config: ChatConfig | ContrastiveConfig | VisionConfig,
    layout: str,
    size: int,
    normalization: Normalization,
) -> dict[str, Any]:
    mean, std = NORMALIZATION_STATISTICS[normalization]
    shared = {"do_normalize": True, "do_resize": True, "image_mean": mean, "image_std": std, "resample": 3}
    if layout == "hf" and isinstance(config, ChatConfig):
        return shared | {
            "image_processor_type": "GotOcr2ImageProcessor",
            "processor_class": "InternVLProcessor",
            "crop_to_patches": config.tiling.dynamic,
            "min_patches": config.tiling.min_tiles,
            "max_patches": config.tiling.max_tiles,
            "do_convert_rgb": True,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "size": {"height": size, "width": size},
        }
    return shared | {
        "crop_size": size,
        "do_center_crop": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "size": size,
    }


def _write_generation(directory: Path, given: Mapping[str, Any]) -> None:
    generation = directory / "generation_config.json"
    if not generation.is_file():
        forms = (given.get(name) for name in ("llm_config", "text_config", "qllama_config"))
        text = next((form for form in forms if form), given)
        ids = {name: text[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in text}
        write_json({"_from_model_config": True, **ids}, generation)


def _write_processors(config: ChatConfig, directory: Path) -> None:
    """What transformers' processors read."""
    processor = {"processor_class": "InternVLProcessor", "image_seq_length": config.tokens_per_tile}
    write_json(processor, directory / "processor_config.json")
    write_json(
        {
            "processor_class": "InternVLProcessor",
            "video_processor_type": "InternVLVideoProcessor",
            "size": {"height": config.tiling.tile_size, "width": config.tiling.tile_size},
            "image_mean": NORMALIZATION_STATISTICS[config.tiling.normalization][0],
            "image_std": NORMALIZATION_STATISTICS[config.tiling.normalization][1],
        },
        directory / "video_preprocessor_config.json",
    )
    template = TEMPLATES.get(config.template)
    if template is not None:
        markup = chat_jinja(template.with_system(config.system_message))
        (directory / "chat_template.jinja").write_text(markup, encoding="utf-8")
        (directory / "chat_template.json").unlink(missing_ok=True)
    tokenizer = directory / "tokenizer_config.json"
    if tokenizer.is_file():
        replaced = ("auto_map",) if template is None else ("auto_map", "chat_template")
        described = {key: value for key, value in read_json(tokenizer).items() if key not in replaced}
        extra = {"extra_special_tokens": HF_TOKENS, "processor_class": "InternVLProcessor"}
        write_json({**described, **extra}, tokenizer)


def _image_token_id(token: int | None, given: Mapping[str, object], directory: Path) -> int:
    """The id of <IMG_CONTEXT>: as given, as recorded, or as the tokenizer's files there say.

    Raises:
        ConfigError: it is nowhere to be found.
    """
    if token is not None:
        return token
    if "image_token_id" in given:
        return Fields(given).whole("image_token_id", 0)
    for path in (directory / "added_tokens.json", directory / "tokenizer_config.json"):
        found = _token_in(read_json(path)) if path.is_file() else None
        if found is not None:
            return found
    raise ConfigError(
        f"the hf layout records the id of {IMG_CONTEXT}: pass extra_files_from=<directory with "
        "tokenizer files> or image_token_id"
    )


def _token_in(values: Mapping[str, Any]) -> int | None:
    if isinstance(values.get(IMG_CONTEXT), int):
        return int(values[IMG_CONTEXT])
    described = values.get("added_tokens_decoder")
    for number, entry in described.items() if isinstance(described, dict) else ():
        if isinstance(entry, dict) and entry.get("content") == IMG_CONTEXT and number.isdecimal():
            return int(number)
    return None
