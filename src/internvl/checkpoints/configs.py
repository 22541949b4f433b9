"""What a checkpoint directory is, from its config.json: a chat or contrastive model, or a part of one.

Chooses the form and the layouts its weights may have. Reads no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from internvl.checkpoints.chat_config import RECORD, read_chat, read_hf_chat, read_llava
from internvl.checkpoints.contrastive_config import read_contrastive
from internvl.checkpoints.fields import Fields
from internvl.checkpoints.layouts import (
    CONTRASTIVE,
    FAMILIES,
    HF,
    HF_UNPREFIXED,
    HF_VISION,
    LLAVA,
    OFFICIAL,
    TEXT,
    TIMM,
    TIMM_CONTRASTIVE,
    VISION,
    Family,
    Kind,
    Layout,
    family_called,
)
from internvl.checkpoints.normalization import read_normalization
from internvl.checkpoints.packing import FIELD, Packing, read_packing
from internvl.checkpoints.read import read_json
from internvl.checkpoints.rules import Heads
from internvl.checkpoints.text_config import read_text
from internvl.checkpoints.vision_config import read_hf_vision, read_vision
from internvl.config import ChatConfig, ContrastiveConfig, Normalization, TextConfig, VisionConfig
from internvl.errors import ConfigError

SUPPORTED = (
    "InternVLChatModel, InternVLForConditionalGeneration, LLaVA (InternVL-Chat 1.0), InternVLModel, "
    "InternVisionModel"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """A config.json understood.

    `family` is how the language model is packed here, `origin` what it was before a conversion.
    `lora_ranks` are those of the tower and of the language model (0: no adapter was trained). `packing` says
    how linear layers are packed; then the one layout is that of our own names.
    """

    kind: Kind
    config: ChatConfig | ContrastiveConfig | VisionConfig | TextConfig
    layouts: tuple[Layout, ...]
    family: Family | None = None
    origin: Family | None = None
    lora_ranks: tuple[int, int] = (0, 0)
    is_head_tied: bool = False
    dtype: str | None = None
    packing: Packing | None = None
    raw: Mapping[str, object]

    @property
    def heads(self) -> Heads:
        return heads_of(self.config)


def heads_of(config: ChatConfig | ContrastiveConfig | VisionConfig | TextConfig) -> Heads:
    """Those of the language model; one each where there is none."""
    text = config.text if isinstance(config, ChatConfig | ContrastiveConfig) else config
    return Heads(text.num_heads, text.num_kv_heads) if isinstance(text, TextConfig) else Heads(1, 1)


def describe(
    directory: str | Path, *, template: str | None = None, vision: VisionConfig | None = None
) -> Description:
    """Read config.json (and preprocessor_config.json) of a checkpoint directory.

    Args:
        directory: the directory, or any file in it.
        template: name of the chat template; wins over the file's.
        vision: the tower of a LLaVA-style checkpoint that does not describe its own.

    Raises:
        ConfigError: no config.json, or one that cannot be built.
        CheckpointError: it cannot be read.
    """
    directory = Path(directory)
    folder = directory.parent if directory.is_file() else directory
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(
            f"no config.json in {folder}: it says what to build; copy it from the checkpoint's source"
        )
    fields = Fields(read_json(path), str(path))
    return describe_json(fields, _read_preprocessor(folder), template=template, vision=vision)


def describe_json(
    fields: Fields, preprocessor: Fields, *, template: str | None = None, vision: VisionConfig | None = None
) -> Description:
    """The same for JSON objects at hand."""
    packing = read_packing(fields)
    if packing is None:
        return _describe_plain(fields, preprocessor, template, vision)
    bare = Fields({key: value for key, value in fields.values.items() if key != FIELD}, fields.place)
    found = _describe_plain(bare, preprocessor, template, vision)
    layout = Layout(name="packed", kind=found.kind, anchor="")
    return replace(found, layouts=(layout,), is_head_tied=False, packing=packing)


def _describe_plain(
    fields: Fields, preprocessor: Fields, template: str | None, vision: VisionConfig | None
) -> Description:
    dtype = fields.values.get("torch_dtype") or fields.values.get("dtype")
    stored = dtype if isinstance(dtype, str) else None
    if fields.has("llm_config"):
        config, family = read_chat(fields, preprocessor, template)
        ranks = (_rank(fields, "use_backbone_lora"), _rank(fields, "use_llm_lora"))
        return Description(
            kind="chat",
            config=config,
            layouts=(OFFICIAL,),
            family=family,
            origin=family,
            lora_ranks=ranks,
            dtype=stored,
            raw=fields.values,
        )
    if fields.has("qllama_config"):
        return _describe_contrastive(fields, preprocessor, stored)
    if fields.has("text_config") and fields.has("vision_config"):
        return _describe_hf(fields, preprocessor, template, stored)
    if fields.has("mm_projector_type") or fields.has("mm_vision_tower"):
        tower = _llava_tower(fields, vision)
        config, family = read_llava(fields, preprocessor, template, tower)
        return Description(
            kind="chat",
            config=config,
            layouts=(LLAVA,),
            family=family,
            origin=family,
            dtype=stored,
            raw=fields.values,
        )
    return _describe_part(fields, stored)


def _describe_contrastive(fields: Fields, preprocessor: Fields, dtype: str | None) -> Description:
    config, family = read_contrastive(fields, preprocessor)
    return Description(
        kind="contrastive",
        config=config,
        layouts=(CONTRASTIVE, TIMM_CONTRASTIVE),
        family=family,
        origin=family,
        lora_ranks=(_rank(fields, "use_backbone_lora"), _rank(fields, "use_qllama_lora")),
        dtype=dtype,
        raw=fields.values,
    )


def _describe_hf(
    fields: Fields, preprocessor: Fields, template: str | None, dtype: str | None
) -> Description:
    config, family = read_hf_chat(fields, preprocessor, template)
    record = fields.inner(RECORD)
    origin = family_called(record.text("llm_architecture")) if record.has("llm_architecture") else family
    text = fields.inner("text_config")
    tied = fields.flag("tie_word_embeddings", default=True) or text.flag("tie_word_embeddings", default=True)
    return Description(
        kind="chat",
        config=config,
        layouts=(HF, HF_UNPREFIXED),
        family=family,
        origin=origin,
        is_head_tied=tied,
        dtype=dtype,
        raw=fields.values,
    )


def _describe_part(fields: Fields, dtype: str | None) -> Description:
    """A vision tower or a language model on its own."""
    kind, architecture = fields.text("model_type", ""), fields.first("architectures")
    if kind == "intern_vit_6b" or architecture == "InternVisionModel":
        config = read_vision(fields)
        return Description(
            kind="vision", config=config, layouts=(VISION, TIMM), dtype=dtype, raw=fields.values
        )
    if kind == "internvl_vision" or architecture == "InternVLVisionModel":
        config = read_hf_vision(fields)
        return Description(kind="vision", config=config, layouts=(HF_VISION,), dtype=dtype, raw=fields.values)
    known = {family.architecture for family in FAMILIES} | {family.model_type for family in FAMILIES}
    if architecture not in known and kind not in known:
        named = architecture or kind or "nothing"
        raise ConfigError(
            f"{fields.place} describes {named}, which is not supported here; there are {SUPPORTED}, "
            f"and as language models {', '.join(family.architecture for family in FAMILIES)}"
        )
    text, family = read_text(fields)
    return Description(
        kind="text",
        config=text,
        layouts=(TEXT,),
        family=family,
        origin=family,
        is_head_tied=fields.flag("tie_word_embeddings", default=False),
        dtype=dtype,
        raw=fields.values,
    )


def describe_vision(directory: str | Path) -> VisionConfig:
    """The tower's configuration, from its own config.json or from that of a model around it.

    Raises:
        ConfigError: the directory describes no tower.
    """
    path = Path(directory)
    path = (path.parent if path.is_file() else path) / "config.json"
    if not path.is_file():
        raise ConfigError(f"no config.json in {path.parent}: it says what to build")
    fields = Fields(read_json(path), str(path))
    inner = fields.inner("vision_config") if fields.has("vision_config") else fields
    kind = inner.text("model_type", "")
    if kind == "internvl_vision":
        return read_hf_vision(inner)
    if fields.has("qllama_config"):
        return read_contrastive(fields, Fields({}))[0].vision
    if (
        fields.has("llm_config")
        or kind == "intern_vit_6b"
        or inner.first("architectures") == "InternVisionModel"
    ):
        return read_vision(inner)
    raise ConfigError(f"{path} describes no vision tower of this family (model_type {kind!r})")


def describe_normalization(directory: str | Path) -> Normalization:
    """What pictures for the tower of a checkpoint are normalised by; ImageNet's where nothing is said.

    Args:
        directory: the directory, or any file in it.

    Raises:
        ConfigError: preprocessor_config.json has statistics that are not known here.
        CheckpointError: it cannot be read.
    """
    path = Path(directory)
    return read_normalization(_read_preprocessor(path.parent if path.is_file() else path))


def _read_preprocessor(folder: Path) -> Fields:
    path = folder / "preprocessor_config.json"
    return Fields(read_json(path) if path.is_file() else {}, str(path))


def _llava_tower(fields: Fields, vision: VisionConfig | None) -> VisionConfig:
    """As described, else as found among the weights or at `vision_path`."""
    if fields.has("vision_config"):
        return read_vision(fields.inner("vision_config"))
    if vision is not None:
        return vision
    named = fields.text("mm_vision_tower", "its vision tower")
    raise ConfigError(
        f"{fields.place} leaves the vision tower to another checkpoint ({named}): "
        "pass vision_path=<its directory>"
    )


def _rank(fields: Fields, name: str) -> int:
    rank = fields.whole(name, 0) if fields.has(name) and fields.values[name] is not False else 0
    if rank < 0:
        raise fields.wrong(name, "0 or a rank")
    return rank
