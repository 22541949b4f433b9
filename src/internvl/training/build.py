"""From a recipe's `ModelSpec` to the model and processor that are trained.

Overrides of the configuration are made before the model is built; adapters and int8 after the weights are in.
Knows no data and no loop.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from internvl.adapt.qlora import quantize_linears
from internvl.checkpoints.load import load_opened, resolve_dtype
from internvl.checkpoints.locate import resolve
from internvl.checkpoints.resolve import Checkpoint, open_checkpoint
from internvl.config import ChatConfig
from internvl.errors import CheckpointError, TrainingError
from internvl.models.projector import Projector
from internvl.models.vlm import VLM
from internvl.processing.processor import Processor
from internvl.processing.tokenizer import load_tokenizer
from internvl.training.recipe import ModelSpec
from internvl.training.start_adapters import start_adapters
from internvl.zoo import template_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A model on the CPU, its processor, the directory it came from, the names of adapted modules, and those
    of parameters that came with the adapters of a run before."""

    model: VLM
    processor: Processor
    source: Path
    adapted: tuple[str, ...]
    replaced: tuple[str, ...] = ()
    family: str | None
    """How the checkpoint packs its language model, where it is known."""


def build(spec: ModelSpec, seed: int) -> Built:
    """Loads the checkpoint, applies the overrides, puts frozen weights into int8, adds the adapters.

    A new projector and new adapters depend on `seed` alone. Raises TrainingError for a checkpoint that is no
    chat model, and what reading it raises.
    """
    path = resolve(spec.checkpoint)
    checkpoint = _overridden(
        open_checkpoint(path, template=spec.template or template_of(spec.checkpoint)), spec
    )
    model = load_opened(checkpoint, dtype=spec.dtype)
    if not isinstance(model, VLM):
        raise TrainingError(f"{spec.checkpoint} is a vision tower alone: training needs a chat model")
    directory = path if path.is_dir() else path.parent
    processor = Processor(model.config, load_tokenizer(directory))
    if spec.fresh_projector:
        torch.manual_seed(seed)
        config = model.config
        projector = Projector(config.projector, config.vision.width, config.text.width)
        model.projector = projector.to(resolve_dtype(spec.dtype))
    if spec.int8:
        quantize_linears(model, spec.int8)
    started = start_adapters(model, spec, seed)
    origin = checkpoint.description.origin
    return Built(
        model=model,
        processor=processor,
        source=directory,
        adapted=started.modules,
        replaced=started.replaced,
        family=origin.name if origin else None,
    )


def narrow_frozen(model: nn.Module, dtype: str | None) -> None:
    """Rounds the parameters that are not trained, where they are to be narrower than the trained ones."""
    for parameter in model.parameters():
        if dtype is not None and not parameter.requires_grad:
            parameter.data = parameter.data.to(resolve_dtype(dtype))


def _overridden(checkpoint: Checkpoint, spec: ModelSpec) -> Checkpoint:
    """The same files with the recipe's configuration."""
    config = checkpoint.description.config
    if not isinstance(config, ChatConfig):
        raise TrainingError(
            f"{spec.checkpoint} is not a chat model: dual encoders have recipes of their own, and parts are "
            "joined first (`internvl convert --replace-llm`)"
        )
    if spec.adapters and spec.template is not None:
        own = _own_template(checkpoint.path, spec.checkpoint)
        if own is not None and spec.template != own:
            raise TrainingError(
                f"model.template {spec.template} is not the checkpoint's {own}: adapters are stored without "
                "a configuration, so it would be lost. Train a model without adapters with it first"
            )
    if spec.drop_path is not None:
        config = replace(config, vision=replace(config.vision, drop_path=spec.drop_path))
    if spec.select_layer is not None:
        if spec.adapters and spec.select_layer != config.select_layer:
            raise TrainingError(
                f"model.select_layer {spec.select_layer} is not the checkpoint's {config.select_layer}: "
                "adapters are stored without a configuration, so it would be lost. Train a model without "
                "adapters at that layer first"
            )
        config = replace(config, select_layer=spec.select_layer)
    if spec.max_tiles is not None:
        config = replace(config, tiling=replace(config.tiling, max_tiles=spec.max_tiles))
    return replace(checkpoint, description=replace(checkpoint.description, config=config))


def _own_template(path: Path, name: str) -> str | None:
    """The template that a checkpoint is read with when none is given; None where one must be."""
    if template := template_of(name):
        return template
    try:
        config = open_checkpoint(path).description.config
    except CheckpointError:  # it was opened with a template before, so that is what it lacks
        return None
    return config.template if isinstance(config, ChatConfig) else None
