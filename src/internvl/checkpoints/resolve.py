"""A path becomes a checkpoint: its configuration, and its tensors under our names, still unread.

Finds the layout by its keys, unwraps adapters, and reports what is missing, left over or misshapen.
Builds no model (see `checkpoints.load`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from internvl.adapt.lora import ALPHA_PER_RANK
from internvl.checkpoints.configs import Description, describe, describe_vision
from internvl.checkpoints.contrastive_config import infer_contrastive
from internvl.checkpoints.layouts import LAYOUTS, TIMM, TIMM_CONTRASTIVE, VISION, Layout, family_called
from internvl.checkpoints.lazy import Lazy, Merged
from internvl.checkpoints.packing import is_packed
from internvl.checkpoints.peft_names import Role, parse_name
from internvl.checkpoints.read import read_json, read_tensors
from internvl.checkpoints.rules import Heads, Rule, convert, original_names
from internvl.checkpoints.vision_config import infer_vision
from internvl.config import TextConfig, VisionConfig
from internvl.errors import ConfigError, WeightsError

NUM_LISTED = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint opened. `tensors` carry our names; `unexpected` are keys that no rule takes."""

    path: Path
    description: Description
    layout: Layout
    tensors: Mapping[str, Lazy]
    unexpected: tuple[str, ...] = ()
    incomplete: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def rules(self) -> tuple[Rule, ...]:
        return self.layout.rules(self.description.family)


def open_checkpoint(
    path: str | Path, *, template: str | None = None, vision_path: str | Path | None = None
) -> Checkpoint:
    """Open a directory, or a single weight file with a config.json beside it.

    Towers and the original `.pth` of InternVL-C need none; beside the latter there may be that of its
    language model.

    Args:
        path: the checkpoint.
        template: chat template; wins over config.json.
        vision_path: where the tower of a LLaVA-style checkpoint is, when it is not inside.

    Raises:
        CheckpointError: it cannot be read, built or matched with a layout.
    """
    path = Path(path)
    tensors = read_tensors(path)
    if _is_bare(path, tensors):
        is_tower = TIMM_CONTRASTIVE.anchor not in tensors
        return _open_bare_tower(path, tensors) if is_tower else _open_bare_pair(path, tensors)
    tower = describe_vision(vision_path) if vision_path else _inner_tower(tensors)
    description = describe(path, template=template, vision=tower)
    if description.packing is not None:
        return Checkpoint(path=path, description=description, layout=description.layouts[0], tensors=tensors)
    tensors = unwrap_adapters(tensors, description.lora_ranks)
    layout = find_layout(tensors, description.layouts, path)
    converted = convert(tensors, layout.rules(description.family), description.heads)
    ours = dict(converted.tensors)
    if vision_path:
        ours |= {f"vit.{name}": tensor for name, tensor in open_tower(vision_path).tensors.items()}
    _tie_head(ours, description)
    return Checkpoint(
        path=path,
        description=description,
        layout=layout,
        tensors=ours,
        unexpected=converted.unexpected,
        incomplete=converted.incomplete,
    )


def open_tower(path: str | Path) -> Checkpoint:
    """Open the vision tower of any checkpoint: stand-alone, a bare `.pth`, or inside another model."""
    path = Path(path)
    tensors = read_tensors(path)
    if _is_bare(path, tensors):
        return _open_bare_tower(path, tensors)
    config = describe_vision(path)
    if is_packed(path):
        return _packed_tower(open_checkpoint(path), config)
    tensors = unwrap_adapters(tensors, (0, 0))
    layout = find_layout(tensors, tuple(LAYOUTS.values()), path)
    is_inside = layout.kind != "vision"
    prefix = "vit." if is_inside else ""
    converted = convert(tensors, layout.vision, Heads(1, 1))
    ours = {name.removeprefix(prefix): tensor for name, tensor in converted.tensors.items()}
    description = Description(kind="vision", config=config, layouts=(layout,), raw={})
    # Everything outside the tower of a larger model is left where it is.
    unexpected = () if is_inside else converted.unexpected
    return Checkpoint(path=path, description=description, layout=layout, tensors=ours, unexpected=unexpected)


def find_layout(tensors: Mapping[str, Lazy], layouts: Sequence[Layout], path: Path) -> Layout:
    """The first layout whose anchor is among the keys.

    Raises:
        WeightsError: the keys fit none of them.
    """
    for layout in layouts:
        if layout.anchor in tensors:
            return layout
    wanted = ", ".join(f"{layout.anchor} ({layout.name})" for layout in layouts)
    raise WeightsError(
        f"the {len(tensors)} tensors of {path} do not fit its config.json: none is called {wanted}; "
        f"the first are {', '.join(sorted(tensors)[:5])}"
    )


def unwrap_adapters(tensors: Mapping[str, Lazy], ranks: tuple[int, int]) -> dict[str, Lazy]:
    """Drop PEFT's wrapping from the names and merge its factors into the weights, lazily.

    `ranks` are those of tower and language model in config.json; where given, the factors must
    have them.

    Raises:
        WeightsError: a factor without its partner or its weight, or of another rank.
    """
    parts: dict[str, dict[Role, Lazy]] = {}
    for key, tensor in tensors.items():
        name, role = parse_name(key)
        if role in parts.setdefault(name, {}):
            raise WeightsError(
                f"{key} and {parts[name][role].origin} are the same tensor, with and without adapter"
            )
        parts[name][role] = tensor
    return {name: _merged(name, roles, ranks) for name, roles in parts.items()}


def check(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare with the shapes of a built model, under our names.

    Raises:
        WeightsError: listing missing, unexpected and misshapen tensors by their names on disk.
        ConfigError: weights are packed, so that there are no tensors to rename, convert, merge or train.
    """
    if checkpoint.description.packing is not None:
        raise ConfigError(
            f"{checkpoint.path} holds weights packed for the CPU's kernels, which only `internvl.load` "
            "reads, and whose plain values are lost: take the checkpoint it was made from"
        )
    check_shapes(checkpoint, shapes)


def check_shapes(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """As `check`, also for packed weights, where shapes are those of their buffers."""
    found, rules = checkpoint.tensors, checkpoint.rules
    missing = [key for name in shapes if name not in found for key in _missing(name, checkpoint)]
    extra = [key for name in found if name not in shapes for key in original_names(name, rules) or (name,)]
    unexpected = sorted([*checkpoint.unexpected, *extra])
    misshapen = [
        f"{found[name].origin} is {found[name].shape}, expected {shape}"
        for name, shape in shapes.items()
        if name in found and found[name].shape != shape
    ]
    if missing or unexpected or misshapen:
        lists = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
        told = "".join(f"\n  {len(names)} {kind}: {_listed(names)}" for kind, names in lists.items() if names)
        raise WeightsError(
            f"{checkpoint.path} does not hold the model of its config.json:{told}\n{_hint(**lists)}"
        )


def _missing(name: str, checkpoint: Checkpoint) -> Sequence[str]:
    """The keys on disk that would have made one of our tensors."""
    lacking = checkpoint.incomplete.get(name)
    return lacking or original_names(name, checkpoint.rules) or (name,)


def _listed(names: Sequence[str]) -> str:
    more = f", ... ({len(names) - NUM_LISTED} more)" if len(names) > NUM_LISTED else ""
    return ", ".join(names[:NUM_LISTED]) + more


def _hint(missing: Sequence[str], unexpected: Sequence[str], misshapen: Sequence[str]) -> str:
    if missing and unexpected:
        return "weights and config.json seem to come from different models"
    if missing:
        return "the download may be incomplete, or config.json describes a larger model"
    if unexpected:
        return "config.json describes a smaller model, or the files hold more than one"
    return "config.json is of another model size, or the vocabulary was resized in one place only"


def _is_bare(path: Path, tensors: Mapping[str, Lazy]) -> bool:
    """Whether the weights alone say what they are: no config.json, or only that of the language model."""
    config = _config_file(path)
    if TIMM_CONTRASTIVE.anchor in tensors:
        return not config.is_file() or "vision_config" not in read_json(config)
    return path.is_file() and not config.is_file()


def _config_file(path: Path) -> Path:
    return (path.parent if path.is_file() else path) / "config.json"


def _open_bare_pair(path: Path, tensors: Mapping[str, Lazy]) -> Checkpoint:
    """InternVL-C as its original code saved it."""
    family = family_called("llama")
    converted = convert(tensors, TIMM_CONTRASTIVE.rules(family), Heads(1, 1))
    text = describe(path).config if _config_file(path).is_file() else None
    shapes = {name: tensor.shape for name, tensor in converted.tensors.items()}
    config = infer_contrastive(shapes, text if isinstance(text, TextConfig) else None)
    return Checkpoint(
        path=path,
        description=Description(
            kind="contrastive",
            config=config,
            layouts=(TIMM_CONTRASTIVE,),
            family=family,
            origin=family,
            raw={},
        ),
        layout=TIMM_CONTRASTIVE,
        tensors=converted.tensors,
        unexpected=converted.unexpected,
        incomplete=converted.incomplete,
    )


def _open_bare_tower(path: Path, tensors: Mapping[str, Lazy]) -> Checkpoint:
    layout = find_layout(tensors, (TIMM, VISION), path)
    converted = convert(tensors, layout.rules(None), Heads(1, 1))
    config = infer_vision({name: tensor.shape for name, tensor in converted.tensors.items()})
    return Checkpoint(
        path=path,
        description=Description(kind="vision", config=config, layouts=(layout,), raw={}),
        layout=layout,
        tensors=converted.tensors,
        unexpected=converted.unexpected,
        incomplete=converted.incomplete,
    )


def _packed_tower(checkpoint: Checkpoint, config: VisionConfig) -> Checkpoint:
    """The tower of a packed model."""
    description = checkpoint.description
    prefix = "" if description.kind == "vision" else "vit."
    assert description.packing is not None
    packing = description.packing.part(prefix)
    own = {
        name.removeprefix(prefix): tensor
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(prefix)
    }
    alone = replace(description, kind="vision", config=config, packing=packing)
    return replace(checkpoint, description=alone, tensors=own)


def _inner_tower(tensors: Mapping[str, Lazy]) -> VisionConfig | None:
    """The tower that a LLaVA-style checkpoint carries without describing it."""
    prefix = "model.vision_tower.vision_tower."
    inside = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    if not inside:
        return None
    converted = convert(inside, VISION.rules(None), Heads(1, 1))
    return infer_vision({name: tensor.shape for name, tensor in converted.tensors.items()})


def _merged(name: str, roles: Mapping[Role, Lazy], ranks: tuple[int, int]) -> Lazy:
    if set(roles) == {"weight"}:
        return roles["weight"]
    if "magnitude" in roles:
        raise WeightsError(f"the adapter of {name} is a DoRA inside a checkpoint: merge it with PEFT first")
    if len(roles) != 3:
        lacking = {"weight", "down", "up"} - set(roles)
        raise WeightsError(f"the adapter of {name} lacks {', '.join(sorted(lacking))}: it cannot be merged")
    down, up, weight = roles["down"], roles["up"], roles["weight"]
    expected = ranks[0] if name.startswith("vision_model.") else ranks[1]
    are_matrices = len(down.shape) == len(up.shape) == 2
    is_fitting = are_matrices and (up.shape[0], down.shape[1], down.shape[0]) == (*weight.shape, up.shape[1])
    if not is_fitting or (expected and down.shape[0] != expected):
        raise WeightsError(
            f"the adapter of {name} has factors {down.shape} and {up.shape} for a weight {weight.shape}; "
            f"config.json says rank {expected}"
        )
    return Merged(weight, down, up, ALPHA_PER_RANK)


def _tie_head(tensors: dict[str, Lazy], description: Description) -> None:
    """Where a language model stores one matrix for input and output, both of ours are filled from it."""
    head, embed = ("llm.head.weight", "llm.embed.weight")
    if description.kind == "text":
        head, embed = "head.weight", "embed.weight"
    if description.is_head_tied and head not in tensors and embed in tensors:
        tensors[head] = tensors[embed]
