"""A model with packed linear layers, and the directory that holds it.

The files are those of the official layout but for the weights, which carry our own names and lie as the
kernels read them, so that `checkpoints.mapped` has nothing to do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch

from internvl.adapt.activation_aware import balance as balance
from internvl.adapt.activation_aware import observe as observe
from internvl.adapt.quantize import PackedLinear, Rules, packable, quantize, rules_of
from internvl.checkpoints.lazy import Held
from internvl.checkpoints.load import Model
from internvl.checkpoints.packing import FIELD, Packing
from internvl.checkpoints.read import read_json
from internvl.checkpoints.shards import fresh_directory, write_json, write_weights
from internvl.checkpoints.side_files import write_side_files
from internvl.checkpoints.write import Target, family_for
from internvl.config import ChatConfig, ContrastiveConfig, VisionConfig
from internvl.errors import InputError


def packing_rules(model: Model, scheme: str | None, rules: Mapping[str, str]) -> Rules:
    """`rules`, {pattern: scheme}, and behind them those of a scheme's name.

    Raises:
        InputError: schemes that do not exist, or nothing to pack.
    """
    chosen = rules_of(rules, model)
    chosen += rules_of(scheme, model) if scheme is not None else []
    if not chosen:
        raise InputError("nothing is packed: name a scheme, or rules")
    return chosen


def layers_to_balance(model: Model, rules: Rules, inputs: Collection[str]) -> list[str]:
    """Layers that the rules pack in four bits, of those that `observe` watches.

    Raises:
        InputError: no such layer of a language model; patterns as `pack_model`.
    """
    packed = packable(model, rules).items()
    names = [name for name, scheme in packed if scheme == "int4" and name in inputs]
    if not names:
        raise InputError("activation-aware scaling is for int4 layers of a language model: there are none")
    return names


def pack_model(model: Model, rules: Rules) -> Packing:
    """Packs a loaded model in place.

    Raises:
        InputError: patterns that name nothing, adapters that are not merged.
    """
    quantize(model, rules)
    layers = {name: part.scheme for name, part in model.named_modules() if isinstance(part, PackedLinear)}
    return Packing(layers=layers)


def write_packed(
    model: Model, config: ChatConfig | ContrastiveConfig | VisionConfig, packing: Packing, target: Target
) -> None:
    """Writes a packed model as a directory, whole or not at all.

    Raises:
        CheckpointError: the directory is in use, or cannot be written.
        ConfigError: the official layout has no words for the model.
    """
    target = replace(target, family=target.family or family_for(config, None, target.source))
    with fresh_directory(target.directory, overwrite=target.overwrite) as directory:
        write_side_files(
            config,
            target.family,
            directory,
            layout="official",
            dtype=torch.float32,
            source=target.source,
            tokenizer_files=target.tokenizer_files,
            normalization=target.normalization,
        )
        described = read_json(directory / "config.json")
        described.pop("auto_map", None)  # the published code cannot build it
        write_json({**described, FIELD: packing.as_json()}, directory / "config.json")
        tensors = {name: Held(value, name) for name, value in model.state_dict().items()}
        write_weights(tensors, directory, target.max_shard_bytes, target.progress)
