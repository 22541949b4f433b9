"""From a recipe's `ModelSpec` to the dual encoder that is trained, and what reads its texts.

It comes from a checkpoint of its own, or is joined from a tower and a language model; then what is new
depends on the seed alone. Knows no data and no loop.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from internvl.checkpoints.configs import describe_normalization
from internvl.checkpoints.fill import place
from internvl.checkpoints.lazy import Held, Lazy, fetch
from internvl.checkpoints.load import load_opened, resolve_dtype
from internvl.checkpoints.locate import resolve
from internvl.checkpoints.resolve import open_checkpoint, open_tower
from internvl.config import ChatConfig, ContrastiveConfig, TextConfig, VisionConfig
from internvl.errors import TrainingError
from internvl.models.dual_encoder import DualEncoder
from internvl.models.qllama import QLlama
from internvl.models.vit import resize_positions
from internvl.processing.texts import TextProcessor
from internvl.processing.tokenizer import Tokenizer, load_tokenizer
from internvl.training.contrastive_parts import ContrastiveParts
from internvl.training.recipe import ModelSpec
from internvl.training.start_adapters import start_adapters
from internvl.zoo import template_of

NEW = re.compile(
    r"text_projection|logit_scale|(image_pool|query_pool|itm_head)\..*|qllama\.(queries|layers\.\d+\.cross\..*)"
)
"""What neither a tower nor a language model has."""

POSITIONS = "vit.embed.position"
CHAT_ALONE = ("template", "select_layer", "max_tiles", "fresh_projector", "int8")
"""The last one: what a run hands over is a whole checkpoint, with its adapters merged into full weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltPairs:
    """A dual encoder on the CPU, its tokenizer, the directory it came from (None: joined from parts), the
    names of adapted modules, and those of parameters that came with the adapters of a run before."""

    model: DualEncoder
    tokenizer: Tokenizer
    source: Path | None
    adapted: tuple[str, ...]
    replaced: tuple[str, ...] = ()


def build_pairs(spec: ModelSpec, seed: int) -> BuiltPairs:
    """Loads or joins the model, applies the overrides, adds the adapters.

    Raises TrainingError for a checkpoint that is no dual encoder, settings that only chat models have, and
    parts that do not fit; and what reading raises.
    """
    if misplaced := [name for name in CHAT_ALONE if getattr(spec, name)]:
        raise TrainingError(f"model.{misplaced[0]} is a setting of chat models: pairs have no use for it")
    if spec.contrastive is None:
        model, directory = _loaded(spec)
    else:
        model, directory = _joined(spec, spec.contrastive, seed)
    tokenizer = load_tokenizer(directory)
    TextProcessor(tokenizer, vocab_size=model.config.text.vocab_size)  # what cannot be read fails now
    started = start_adapters(model, spec, seed)
    return BuiltPairs(
        model=model,
        tokenizer=tokenizer,
        source=directory if spec.contrastive is None else None,
        adapted=started.modules,
        replaced=started.replaced,
    )


def _loaded(spec: ModelSpec) -> tuple[DualEncoder, Path]:
    path = resolve(spec.checkpoint)
    checkpoint = open_checkpoint(path)
    config = checkpoint.description.config
    if not isinstance(config, ContrastiveConfig):
        raise TrainingError(
            f"{spec.checkpoint} is no InternVL-C or -G, which learn from pairs: take one, or begin one "
            "from its tower with model.contrastive.language=..."
        )
    if spec.drop_path is not None:
        config = replace(config, vision=replace(config.vision, drop_path=spec.drop_path))
    config, tensors = _sized(config, checkpoint.tensors, spec.image_size or config.image_size)
    description = replace(checkpoint.description, config=config)
    changed = replace(checkpoint, description=description, tensors=tensors)
    model = load_opened(changed, dtype=spec.dtype)
    if not isinstance(model, DualEncoder):
        raise TrainingError(f"{spec.checkpoint} is a {type(model).__name__}, not a dual encoder")
    return model, path if path.is_dir() else path.parent


def _joined(spec: ModelSpec, parts: ContrastiveParts, seed: int) -> tuple[DualEncoder, Path]:
    """A model of parts, and the directory of its language model."""
    tower_path, language_path = resolve(spec.checkpoint), resolve(parts.language)
    tower = open_tower(tower_path)
    text, language = _language(parts.language, language_path)
    vision = tower.description.config
    if not isinstance(vision, VisionConfig):
        raise TrainingError(f"{spec.checkpoint} has no vision tower")
    config = ContrastiveConfig(
        vision=vision if spec.drop_path is None else replace(vision, drop_path=spec.drop_path),
        text=text,
        embed_dim=parts.embed_dim,
        pool_heads=parts.pool_heads,
        num_queries=parts.num_queries,
        cross_every=parts.cross_every,
        image_size=spec.image_size or parts.image_size,
        normalization=describe_normalization(tower_path),
    )
    tensors = {f"vit.{name}": lazy for name, lazy in tower.tensors.items()}
    tensors |= {f"qllama.{name}": lazy for name, lazy in language.items()}
    return _filled(*_sized(config, tensors, config.image_size), spec.dtype, seed), language_path


def _sized(
    config: ContrastiveConfig, tensors: Mapping[str, Lazy], size: int
) -> tuple[ContrastiveConfig, Mapping[str, Lazy]]:
    """For pictures of `size` pixels a side: the table of positions is resized once, as the tower would at
    each look."""
    if size % config.vision.patch_size:
        raise TrainingError(
            f"model.image_size {size} is no multiple of {config.vision.patch_size}, a patch of the tower"
        )
    vision = replace(config.vision, image_size=size)
    sized = replace(config, vision=vision, image_size=size)
    if POSITIONS not in tensors:
        return sized, tensors
    table = resize_positions(fetch(tensors[POSITIONS]), vision.grid, vision.grid)
    return sized, {**tensors, POSITIONS: Held(table, POSITIONS)}


def _language(name: str, path: Path) -> tuple[TextConfig, dict[str, Lazy]]:
    """The language model of a checkpoint, by its own names."""
    checkpoint = open_checkpoint(path, template=template_of(name))
    config = checkpoint.description.config
    if isinstance(config, TextConfig):
        return config, dict(checkpoint.tensors)
    if not isinstance(config, ChatConfig):
        raise TrainingError(f"{name} is neither a language model nor a chat model")
    inside = {key.removeprefix("llm."): lazy for key, lazy in checkpoint.tensors.items() if key[:4] == "llm."}
    return config.text, inside


def _filled(config: ContrastiveConfig, tensors: Mapping[str, Lazy], dtype: str, seed: int) -> DualEncoder:
    """New by the seed, but for what `tensors` hold. Query tokens begin like words: equal ones would stay
    equal for ever."""
    torch.manual_seed(seed)
    model = DualEncoder(config)
    own = model.state_dict()
    given = {name: lazy for name, lazy in tensors.items() if name in own or config.is_generative}
    lacking = [name for name in own if name not in given and not NEW.fullmatch(name)]
    strange = [name for name in given if name not in own or tuple(own[name].shape) != given[name].shape]
    if lacking or strange:
        raise TrainingError(
            f"tower and language model make no dual encoder: {len(lacking)} tensors are missing, first "
            f"{lacking[:3]}; {len(strange)} do not fit, first {strange[:3]}"
        )
    cpu, target = torch.device("cpu"), resolve_dtype(dtype)
    model.load_state_dict({name: place(lazy, target, cpu) for name, lazy in given.items()}, strict=False)
    if isinstance(model.qllama, QLlama):
        with torch.no_grad():
            model.qllama.queries.normal_(std=float(model.qllama.embed.weight.float().std()))
    return model.to(target).eval()
