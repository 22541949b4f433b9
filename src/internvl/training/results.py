"""What a run hands over: a checkpoint, or adapters in PEFT's format.

Knows models and files; no optimiser and no loop.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch

from internvl.adapt.lora import adapters, merged_state
from internvl.checkpoints.adapters import describe_adapters, save_adapters
from internvl.checkpoints.deltas import write_deltas
from internvl.checkpoints.lazy import Held
from internvl.checkpoints.text_config import guess_family
from internvl.checkpoints.write import Target, save_model, write_checkpoint
from internvl.config import IMG_CONTEXT
from internvl.errors import ConfigError
from internvl.training.build import Built
from internvl.training.build_pairs import BuiltPairs
from internvl.training.recipe import Recipe

MODEL, ADAPTER, DELTAS = "model", "adapter", "deltas"


def check_result(built: Built | BuiltPairs, recipe: Recipe) -> None:
    """Raises ConfigError for adapters that cannot be stored, and for a new projector that nothing trains:
    before a run, not after."""
    learning = {name.split(".")[0] for name, p in built.model.named_parameters() if p.requires_grad}
    if recipe.model.fresh_projector and "projector" not in learning:
        raise ConfigError(
            r"model.fresh_projector draws a new projector, but no rule of params trains it: add one for "
            r"projector\..*, or leave the checkpoint's projector as it is"
        )
    if built.adapted:
        describe_adapters(built.model, **_adapter_options(built, recipe))


def result_name(built: Built | BuiltPairs) -> str:
    """The folder of the result. A dual encoder is always written whole, so that it can embed; its adapters
    lie beside it, to be trained further."""
    return ADAPTER if isinstance(built, Built) and built.adapted else MODEL


def write_result(built: Built | BuiltPairs, recipe: Recipe, out: Path) -> None:
    """Adapters with whatever else was trained beside them, or the whole model, in the run's folder; of a dual
    encoder both."""
    if built.adapted:
        save_adapters(built.model, out / ADAPTER, **_adapter_options(built, recipe), overwrite=True)
    if isinstance(built, BuiltPairs):
        _write_pairs(built, out)
    elif not built.adapted:
        _write_chat(built, out / MODEL)


def _write_chat(built: Built, path: Path) -> None:
    tokenizer = built.processor.tokenizer
    save_model(
        built.model,
        built.model.config,
        path,
        extra_files_from=built.source,
        tokenizer_files=tokenizer.files,
        image_token_id=tokenizer.token_id(IMG_CONTEXT),
        overwrite=True,
    )


def _write_pairs(built: BuiltPairs, out: Path) -> None:
    """The checkpoint, adapters merged into it; these, and all else that was trained, in `deltas` too."""
    model = built.model
    target = Target(
        directory=out / MODEL,
        family=guess_family(model.config.text),
        source=built.source,
        tokenizer_files=built.tokenizer.files,
        overwrite=True,
    )
    state = {name: Held(value, name) for name, value in merged_state(model).items()}
    write_checkpoint(state, model.config, target)
    found = adapters(model).values()
    if found and not any(module.lora.magnitude for module in found):
        partial = out / f"{DELTAS}.partial"
        for folder in (partial, out / DELTAS):
            shutil.rmtree(folder, ignore_errors=True)
        write_deltas(model, [re.escape(name) for name in _beside(built)], partial, torch.float32)
        partial.rename(out / DELTAS)


def _beside(built: Built | BuiltPairs) -> list[str]:
    """Parameters that were trained beside adapters, in this run or in the one that it began with."""
    return [
        name
        for name, p in built.model.named_parameters()
        if name in built.replaced or (p.requires_grad and ".lora_" not in name)
    ]


def _adapter_options(built: Built | BuiltPairs, recipe: Recipe) -> dict[str, Any]:
    """What PEFT's files are to say beside the adapters: what else was trained, names, the base."""
    family = built.family if isinstance(built, Built) else None
    return {"trained": _beside(built), "family": family, "base": recipe.model.checkpoint}
