"""Saving a model as a checkpoint directory in the official, transformers or LLaVA layout.

Our tensors are renamed lazily by the layout's rules and streamed to disk; values are never computed
with. The directory appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from internvl.adapt.quantize import PackedLinear
from internvl.checkpoints.configs import describe, heads_of
from internvl.checkpoints.layouts import (
    CONTRASTIVE,
    HF,
    HF_VISION,
    LLAVA,
    OFFICIAL,
    TEXT,
    VISION,
    Family,
    Layout,
    family_called,
)
from internvl.checkpoints.lazy import Held, Lazy
from internvl.checkpoints.load import Model
from internvl.checkpoints.rules import convert, strictly
from internvl.checkpoints.shards import Progress, fresh_directory, write_weights
from internvl.checkpoints.side_files import write_side_files
from internvl.checkpoints.text_config import guess_family
from internvl.config import ChatConfig, ContrastiveConfig, Normalization, TextConfig, VisionConfig
from internvl.errors import CheckpointError, ConfigError, UnknownNameError

CHAT_LAYOUTS: Mapping[str, Layout] = {"official": OFFICIAL, "hf": HF, "llava": LLAVA}
CONTRASTIVE_LAYOUTS: Mapping[str, Layout] = {"official": CONTRASTIVE}
VISION_LAYOUTS: Mapping[str, Layout] = {"official": VISION, "hf": HF_VISION}
TEXT_LAYOUTS: Mapping[str, Layout] = {"official": TEXT, "hf": TEXT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where and how to write. `source` is the directory the model came from, if there is one.

    `verify` is called with the finished directory before it takes its name; what it raises undoes all.
    """

    directory: Path
    layout: str = "official"
    family: Family | None = None
    max_shard_bytes: float = 5e9
    source: Path | None = None
    tokenizer_files: Mapping[str, bytes] = field(default_factory=dict)
    image_token_id: int | None = None
    normalization: Normalization | None = None
    overwrite: bool = False
    progress: Progress | None = None
    verify: Callable[[Path], None] | None = None


def save_model(
    model: Model,
    config: ChatConfig | ContrastiveConfig | VisionConfig,
    directory: str | Path,
    layout: str = "official",
    max_shard_bytes: float = 5e9,
    extra_files_from: str | Path | None = None,
    *,
    tokenizer_files: Mapping[str, bytes] | None = None,
    family: str | None = None,
    image_token_id: int | None = None,
    normalization: Normalization | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model as a checkpoint directory, whole or not at all.

    Args:
        model: a chat model, a contrastive model or a vision tower.
        config: what to record; normally `model.config`.
        directory: must be empty or absent unless `overwrite`.
        layout: "official", "hf" (transformers) or, for InternVL-Chat 1.0, "llava".
        max_shard_bytes: larger checkpoints are split.
        extra_files_from: the directory the model came from: tokenizer, code files and fields of
            config.json without a meaning here are carried over.
        tokenizer_files: contents by name, written when `extra_files_from` is not given or is gone.
        family: how the language model is packed ("internlm2", "llama", ...); by default as in
            `extra_files_from`, else what the configuration implies.
        image_token_id: id of <IMG_CONTEXT> for "hf", when no tokenizer files are given.
        normalization: what a tower's pictures are normalised by; by default as in
            `extra_files_from`, else ImageNet's. The configuration of other models says it itself.
        overwrite: replace a directory that holds files.

    Raises:
        CheckpointError: the directory is in use or cannot be written; `extra_files_from` is gone, and
            there are no `tokenizer_files`; packed weights (`adapt.quantize`).
        ConfigError: the layout cannot express the model.
        UnknownNameError: no such layout or family.
    """
    if packed := [name for name, module in model.named_modules() if isinstance(module, PackedLinear)]:
        raise CheckpointError(
            f"{len(packed)} layers are packed for the kernels, first {packed[0]}: save the model as it is "
            "loaded without quantize; `internvl quantize` writes packed ones"
        )
    source = _source(extra_files_from, is_needed=not tokenizer_files)
    target = Target(
        directory=Path(directory),
        layout=layout,
        family=family_for(config, family, source),
        max_shard_bytes=max_shard_bytes,
        source=source,
        tokenizer_files=tokenizer_files or {},
        image_token_id=image_token_id,
        normalization=normalization,
        overwrite=overwrite,
    )
    write_checkpoint({name: Held(value, name) for name, value in model.state_dict().items()}, config, target)


def write_checkpoint(
    tensors: Mapping[str, Lazy],
    config: ChatConfig | ContrastiveConfig | VisionConfig | TextConfig,
    target: Target,
) -> None:
    """Write tensors that carry our names.

    Raises:
        CheckpointError, ConfigError, UnknownNameError: as `save_model`.
    """
    layouts = _layouts(config)
    if target.layout not in layouts:
        raise UnknownNameError(
            f"cannot save this model in layout {target.layout!r}; there are {', '.join(layouts)}"
        )
    packing = target.family
    if target.layout == "hf" and packing is not None and packing.name == "internlm2":
        packing = family_called("llama")
    dtype = next(iter(tensors.values())).dtype
    with fresh_directory(target.directory, overwrite=target.overwrite) as directory:
        write_side_files(
            config,
            packing if isinstance(config, TextConfig) else target.family,
            directory,
            layout=target.layout,
            dtype=dtype,
            source=target.source,
            tokenizer_files=target.tokenizer_files,
            image_token_id=target.image_token_id,
            normalization=target.normalization,
        )
        # Only now: a configuration that the layout cannot express says more than a name without a rule.
        rules = layouts[target.layout].rules(packing)
        renamed = strictly(convert(tensors, rules, heads_of(config), back=True))
        write_weights(renamed, directory, target.max_shard_bytes, target.progress)
        if target.verify is not None:
            target.verify(directory)


def _layouts(config: ChatConfig | ContrastiveConfig | VisionConfig | TextConfig) -> Mapping[str, Layout]:
    """What a model can be saved in, by name."""
    if isinstance(config, ChatConfig):
        return CHAT_LAYOUTS
    if isinstance(config, ContrastiveConfig):
        return CONTRASTIVE_LAYOUTS
    return VISION_LAYOUTS if isinstance(config, VisionConfig) else TEXT_LAYOUTS


def _source(directory: str | Path | None, *, is_needed: bool) -> Path | None:
    """The directory, if it is there."""
    if not directory:
        return None
    if Path(directory).is_dir():
        return Path(directory)
    if is_needed:
        raise CheckpointError(
            f"extra_files_from: there is no directory {directory}, from which tokenizer and code files were "
            "to be copied; leave it out, or pass tokenizer_files"
        )
    return None


def family_for(
    config: ChatConfig | ContrastiveConfig | VisionConfig, name: str | None, source: Path | None
) -> Family | None:
    """As asked for, as the source directory says, or as the configuration implies."""
    if isinstance(config, VisionConfig):
        return None
    if name is not None:
        return family_called(name)
    if source is not None and (source / "config.json").is_file():
        template = config.template if isinstance(config, ChatConfig) else None
        try:
            origin = describe(source, template=template).origin
        except ConfigError:
            origin = None
        if origin is not None:
            return origin
    return guess_family(config.text)
