"""Adapters to and from PEFT's files: adapter_config.json and adapter_model.safetensors.

Names are those of the official or the transformers layout, through the same rules as whole checkpoints,
so that other programs can use what was trained here and the other way round. Where a layout keeps as one
matrix what has several factors here, the factors are stacked and the rank adds up; nothing is approximated.
Knows no training (see `adapt.lora` for the modules).
Shape letters: O rows and I columns of a weight, R rank.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from internvl.adapt.lora import LoRALinear, adapters
from internvl.adapt.targets import linear_modules
from internvl.checkpoints.adapter_config import read_adapter_config, write_adapter_config
from internvl.checkpoints.adapter_factors import Factors, plan_adapter, stored_factors
from internvl.checkpoints.lazy import Held, Lazy, fetch
from internvl.checkpoints.load import Model
from internvl.checkpoints.naming import Naming, find_naming, namings
from internvl.checkpoints.peft_names import Role, parse_name
from internvl.checkpoints.read import read_json
from internvl.checkpoints.rules import convert, original_names
from internvl.checkpoints.shards import fresh_directory, write_json, write_safetensors
from internvl.checkpoints.weight_files import read_file
from internvl.errors import CheckpointError, ConfigError, WeightsError
from internvl.models.layers import Linear

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
OF_A_MODULE = (".weight", ".bias")
"""How the names of parameters end that are all that their module has."""
NUM_LISTED = 5


def save_adapters(
    model: Model,
    directory: str | Path,
    layout: str = "official",
    *,
    trained: Sequence[str] = (),
    family: str | None = None,
    base: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write the adapters of a model as a directory that PEFT loads onto the base model of that layout.

    Args:
        model: it carries adapters.
        directory: must be empty or absent unless `overwrite`; appears whole or not at all.
        layout: "official" or "hf": whose names the base model has.
        trained: parameters, by our names, that were trained beside the adapters, such as those of the
            projector. Their modules are stored whole (`modules_to_save`); a parameter that stands beside
            modules, such as `text_projection`, alone: PEFT puts it in its place by its name.
        family: how the language model is packed; by default what the configuration implies.
        base: the base model's name or path, for the record.

    Raises:
        ConfigError: PEFT's format cannot express it.
        CheckpointError: the directory is in use or cannot be written.
        UnknownNameError: no such layout or family.
    """
    tensors, config = describe_adapters(model, layout, trained=trained, family=family, base=base)
    with fresh_directory(Path(directory), overwrite=overwrite) as folder:
        held = [(name, Held(value, name)) for name, value in sorted(tensors.items())]
        write_safetensors(held, folder / WEIGHT_FILES[0])
        write_json(config, folder / CONFIG_FILE)


def describe_adapters(
    model: Model,
    layout: str = "official",
    *,
    trained: Sequence[str] = (),
    family: str | None = None,
    base: str | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the configuration that `save_adapters` writes; arguments and errors are its own."""
    naming = find_naming(model, layout, family)
    found = adapters(model)
    stored: dict[str, Factors] = {}
    for name, module in found.items():
        stored.update(stored_factors(naming, name, module))
    whole = _whole_modules(model, naming, trained)
    if not stored:
        raise ConfigError("the model has no adapters: save it as a checkpoint")
    settings = {(module.lora.magnitude, module.lora.rank_stabilized) for module in found.values()}
    if len({magnitude for magnitude, _ in settings}) > 1:
        raise ConfigError("PEFT has DoRA for all modules or for none: merge the adapters instead")
    config = write_adapter_config(
        {name: factors.up_OR.shape[1] for name, factors in stored.items()},
        {name: factors.scale for name, factors in stored.items()},
        dropout=max(module.lora.dropout for module in found.values()),
        rank_stabilized=all(is_stabilized for _, is_stabilized in settings),
        magnitude=any(magnitude for magnitude, _ in settings),
        whole=sorted({name.rpartition(".")[0] for name in whole if name.endswith(OF_A_MODULE)}),
        base=base,
    )
    tensors = {PREFIX + name: value for name, value in whole.items()}
    for name, factors in stored.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = factors.down_RI
        tensors[f"{PREFIX}{name}.lora_B.weight"] = factors.up_OR
        if factors.magnitude_O is not None:
            tensors[f"{PREFIX}{name}.lora_magnitude_vector"] = factors.magnitude_O
    return tensors, config


def _whole_modules(model: nn.Module, naming: Naming, trained: Sequence[str]) -> dict[str, Tensor]:
    """The trained parameters, with all others of a module that has no modules inside, by their names."""
    known: dict[str, Tensor] = {}
    for name in trained:
        owner = name.rpartition(".")[0]
        module = model.get_submodule(owner)
        if isinstance(module, LoRALinear):
            raise ConfigError(
                f"{owner} has an adapter and its own weights were trained too, which PEFT's files do not "
                "hold: train one of them"
            )
        is_leaf = next(module.children(), None) is None
        leaves = [leaf for leaf, _ in module.named_parameters()] if is_leaf else []
        whole = [f"{owner}.{leaf}" for leaf in leaves] or [name]
        known |= {one: model.get_parameter(one) for one in whole}
    rows = [naming.split(name, value.detach()) for name, value in known.items()]
    return {name: fetch(piece) for pieces in rows for name, piece in pieces.items()}


@dataclass(slots=True)
class _Found:
    """The tensors of a file: factors by module and kind, and whole tensors, all by its names."""

    factors: dict[str, dict[Role, Lazy]] = field(default_factory=dict)
    whole: dict[str, Lazy] = field(default_factory=dict)


class Loaded(NamedTuple):
    """Modules of ours that got adapters, and parameters that were replaced."""

    modules: tuple[str, ...]
    replaced: tuple[str, ...]


def load_adapters(model: Model, directory: str | Path) -> Loaded:
    """Put adapters that PEFT, or `save_adapters`, wrote onto a model.

    The base model's layout is recognised by the names. Modules stored whole replace those of the
    model. Matrices that are fused here get one rank and scale: smaller factors are padded with zeros.

    Raises:
        CheckpointError: files that cannot be read, a method or option other than LoRA (ConfigError), or
            tensors that do not fit the model (WeightsError). The model is then as it was.
    """
    directory = Path(directory)
    config = read_adapter_config(read_json(directory / CONFIG_FILE), str(directory / CONFIG_FILE))
    found = _read(directory)
    naming = _recognize(model, found, directory)
    plans = [
        plan
        for name in linear_modules(model)
        if isinstance(module := model.get_submodule(name), Linear)
        and (plan := plan_adapter(naming, name, module, found.factors, config)) is not None
    ]
    whole = _whole_tensors(model, naming, found)
    for plan in plans:
        plan.apply(model)
    for name, value in whole.items():
        owner, _, leaf = name.rpartition(".")
        old = model.get_parameter(name)
        new = nn.Parameter(value.to(old, copy=True), requires_grad=old.requires_grad)
        model.get_submodule(owner).register_parameter(leaf, new)
    return Loaded(tuple(plan.name for plan in plans), tuple(whole))


def load_beside(model: Model, directory: str | Path) -> Model:
    """A second model, with the adapters of a directory, that shares all other weights of `model`.

    The first one stays as it is. Raises as `load_adapters`.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    beside = copy.deepcopy(model, shared)
    load_adapters(beside, directory)
    return beside.eval()


def _read(directory: Path) -> _Found:
    path = next((directory / name for name in WEIGHT_FILES if (directory / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{directory} holds no adapter weights: none of {', '.join(WEIGHT_FILES)}")
    found = _Found()
    for key, tensor in read_file(path).items():
        name, role = parse_name(key)
        if role == "weight":
            found.whole[name] = tensor
        else:
            found.factors.setdefault(name.removesuffix(".weight"), {})[role] = tensor
    return found


def _recognize(model: Model, found: _Found, directory: Path) -> Naming:
    """The naming that knows every name of the file."""
    ours = [f"{name}.weight" for name in linear_modules(model)]
    fewest: list[str] | None = None
    for naming in namings(model):
        theirs = {key for name in ours for key in original_names(name, naming.rules)}
        unknown = [name for name in found.factors if f"{name}.weight" not in theirs]
        unknown += convert(found.whole, naming.rules, naming.heads).unexpected
        if not unknown:
            return naming
        if fewest is None or len(unknown) < len(fewest):
            fewest = unknown
    listed = ", ".join((fewest or [])[:NUM_LISTED])
    raise WeightsError(
        f"the adapters in {directory} are of another model: it has no linear module for {len(fewest or [])} "
        f"of the {len(found.factors) + len(found.whole)} names, first {listed}"
    )


def _whole_tensors(model: nn.Module, naming: Naming, found: _Found) -> dict[str, Tensor]:
    whole: dict[str, Tensor] = naming.join(found.whole)
    known = dict(model.named_parameters())
    for name, value in whole.items():
        if name not in known or known[name].shape != value.shape:
            has = tuple(known[name].shape) if name in known else "nothing"
            raise WeightsError(f"the file replaces {name} by {tuple(value.shape)}; the model has {has}")
        if not value.isfinite().all():
            raise WeightsError(f"{name} holds NaN or infinite values: its training diverged")
    return whole
