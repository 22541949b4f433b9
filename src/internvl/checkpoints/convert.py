"""A checkpoint on disk rewritten in another layout, streaming, exact to the bit, every dtype kept."""

from __future__ import annotations

from pathlib import Path

from internvl.checkpoints.layouts import family_called
from internvl.checkpoints.load import build
from internvl.checkpoints.resolve import check, open_checkpoint
from internvl.checkpoints.shards import Progress
from internvl.checkpoints.write import Target, write_checkpoint
from internvl.config import ChatConfig, VisionConfig
from internvl.errors import ConfigError


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
) -> None:
    """Rewrite a checkpoint in another layout without loading it; adapters are merged on the way.

    Arguments are those of `load_model` and `save_model`. An InternLM2 model becomes LLaMA in "hf"
    and, because its origin is recorded there, InternLM2 again in "official". `progress` is called after
    each tensor with its new name, the bytes written so far and those in total.

    Raises:
        CheckpointError: the source cannot be read or does not hold the model of its config.json, or
            the directory cannot be written.
        ConfigError: the layout cannot express the model.
        UnknownNameError: no such layout or family.
    """
    opened = open_checkpoint(source, template=template, vision_path=vision_path)
    config = opened.description.config
    if not isinstance(config, ChatConfig | VisionConfig):
        raise ConfigError(f"{source} is a language model alone; it has no other layout to convert to")
    check(opened, {name: tuple(value.shape) for name, value in build(config).state_dict().items()})
    target = Target(
        directory=Path(directory),
        layout=layout,
        family=family_called(family) if family else opened.description.origin,
        max_shard_bytes=max_shard_bytes,
        source=Path(source) if Path(source).is_dir() else None,
        image_token_id=image_token_id,
        overwrite=overwrite,
        progress=progress,
    )
    write_checkpoint(opened.tensors, config, target)
