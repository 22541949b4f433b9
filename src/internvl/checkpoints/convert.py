"""A checkpoint on disk rewritten: in another layout, in part, with another language model, in other sizes.

Streaming, exact to the bit where nothing is changed, every dtype kept.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from internvl.checkpoints.edit import Part, Resize, Tensors, extract, replace_language, resize
from internvl.checkpoints.layouts import LLAVA_PROJECTOR, MLP1, family_called
from internvl.checkpoints.load import build
from internvl.checkpoints.resolve import Checkpoint, check, open_checkpoint
from internvl.checkpoints.rules import Heads, strictly
from internvl.checkpoints.rules import convert as rename
from internvl.checkpoints.shards import Progress, fresh_directory, write_weights
from internvl.checkpoints.write import Target, write_checkpoint
from internvl.config import ChatConfig, ContrastiveConfig, TextConfig, VisionConfig
from internvl.errors import ConfigError


class Language(NamedTuple):
    """A language model to put into a chat model: its checkpoint, and how many vocabulary rows are its own
    (the chat model's added tokens begin there)."""

    path: str | Path
    num_rows: int


def convert(
    source: str | Path,
    directory: str | Path,
    layout: str = "hf",
    *,
    family: str | None = None,
    max_shard_bytes: float = 5e9,
    template: str | None = None,
    vision_path: str | Path | None = None,
    image_token_id: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    language: Language | None = None,
    sizes: Resize | None = None,
    part: Part | None = None,
) -> None:
    """Rewrite a checkpoint without loading it; adapters in it are merged on the way.

    The other arguments are those of `load_model` and `save_model`. An InternLM2 model becomes LLaMA in "hf"
    and, because its origin is recorded there, InternLM2 again in "official". A projector alone is written
    under its official names, which `checkpoints.load.compose` reads.

    Args:
        source: a checkpoint directory or weight file.
        directory: must be empty or absent unless `overwrite`.
        layout: "official", "hf" or "llava"; a contrastive model has only "official".
        progress: called after each tensor with its new name, the bytes written so far and those in total.
        language: takes the place of the chat model's own; done first.
        sizes: other sizes; done next.
        part: keep only this part of a chat model, or the tower of a contrastive one; done last.

    Raises:
        CheckpointError: files that cannot be read, written or matched with their config.json.
        ConfigError: the layout cannot express the model, or it has no such part.
        InputError, UnknownNameError: impossible sizes; no such layout or family.
    """
    opened = open_checkpoint(source, template=template, vision_path=vision_path)
    config = opened.description.config
    if isinstance(config, TextConfig):
        raise ConfigError(f"{source} is a language model alone; it has no other layout to convert to")
    check(opened, _shapes(config))
    tensors: Tensors = opened.tensors
    if language is not None:
        tensors, config = _with_language(opened, language)
    if sizes is not None:
        tensors, config = resize(tensors, config, sizes)
    target = Target(
        directory=Path(directory),
        layout=layout,
        family=family_called(family) if family else opened.description.origin,
        max_shard_bytes=max_shard_bytes,
        source=_side_files(Path(source), config),
        image_token_id=image_token_id,
        overwrite=overwrite,
        progress=progress,
    )
    if part is None:
        write_checkpoint(tensors, config, target)
    else:
        _write_part(tensors, config, part, target)


def _with_language(opened: Checkpoint, language: Language) -> tuple[Tensors, ChatConfig]:
    config, other = opened.description.config, open_checkpoint(language.path)
    text = other.description.config
    if not isinstance(config, ChatConfig) or not isinstance(text, TextConfig):
        raise ConfigError(f"a language model goes into a chat model: {language.path} into {opened.path}")
    tensors, config = replace_language(opened.tensors, config, other.tensors, text, language.num_rows)
    check(replace(opened, tensors=tensors), _shapes(config))
    return tensors, config


def _side_files(source: Path, config: ChatConfig | ContrastiveConfig | VisionConfig) -> Path | None:
    """The directory whose tokenizer and code come along: also that of InternVL-C's single file."""
    if source.is_dir():
        return source
    return source.parent if isinstance(config, ContrastiveConfig) else None


def _write_part(
    tensors: Tensors, config: ChatConfig | ContrastiveConfig | VisionConfig, part: Part, target: Target
) -> None:
    if isinstance(config, VisionConfig):
        raise ConfigError(f"only a larger model has a {part} to take out: this is a vision tower")
    found, alone = extract(tensors, config, part)
    if alone is not None:
        # A tower has its own side files; those of the larger model describe the whole.
        source = target.source if part == "llm" else None
        pixels = config.tiling if isinstance(config, ChatConfig) else config
        target = replace(target, source=source, normalization=pixels.normalization)
        write_checkpoint(found, alone, target)
        return
    rules = MLP1 if isinstance(config, ChatConfig) and config.projector.norm else LLAVA_PROJECTOR
    renamed = strictly(rename(found, rules, Heads(1, 1), back=True))
    with fresh_directory(target.directory, overwrite=target.overwrite) as directory:
        write_weights(renamed, directory, target.max_shard_bytes, target.progress)


def _shapes(config: ChatConfig | ContrastiveConfig | VisionConfig) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in build(config).state_dict().items()}
