"""What a step computes, part by part: records to tokens and tiles, to operations and saved values.

Numbers of saved values follow from what the layers of `models` keep for their backward pass. Works on a model
whose parameters the recipe's rules have frozen, on the meta device too; nothing is run. Shape letters: T
tokens, N tiles, A trained tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from internvl.config import TextConfig, VisionConfig
from internvl.data.example import Size
from internvl.models.vlm import VLM
from internvl.training.cross_entropy import LOGITS_AT_ONCE
from internvl.training.recipe import Recipe

FLOAT = 4
AUTOCAST_BYTES = 2.4
"""Of a saved value on average: products are kept in two bytes, norms and the residual stream in four."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One step, over all processes. `attended` is the mean length of the sequence a token stands in."""

    tokens: float
    tiles: float
    trained: float
    attended: float

    def share(self, parts: int) -> Load:
        """One of `parts` equal micro-batches."""
        return replace(
            self, tokens=self.tokens / parts, tiles=self.tiles / parts, trained=self.trained / parts
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unit:
    """A stretch of the model in the order of its work. For each position `passed` values stay where gradients
    only go through it; trained parameters keep more (see `_trained_values`)."""

    name: str
    module: nn.Module
    positions: float
    passed: float
    width: int
    attention: float = 0.0


def step_load(model: VLM, recipe: Recipe, sizes: Sequence[Size] | None) -> Load:
    """The mean step of records like `sizes`, or one of records at the recipe's limits."""
    batching, config = recipe.data.batching, model.config
    if sizes:
        tokens, tiles, trained = (
            sum(values) / len(sizes)
            for values in zip(*((size.tokens, size.tiles, size.trained) for size in sizes), strict=True)
        )
        attended = sum(size.tokens**2 for size in sizes) / len(sizes) / tokens
    else:
        tokens = attended = float(min(recipe.data.max_length, batching.max_tokens))
        most = min(batching.max_tiles, config.tiling.max_tiles + 1 if config.tiling.dynamic else 1)
        tiles = float(min(most, tokens // config.tokens_per_tile))
        trained = tokens - tiles * config.tokens_per_tile
    records = float(batching.examples or 0)
    if batching.packs is not None:
        fitting = batching.max_tokens / tokens
        records = batching.packs * (min(fitting, batching.max_tiles / tiles) if tiles else fitting)
    return Load(tokens=records * tokens, tiles=records * tiles, trained=records * trained, attended=attended)


def _units(model: VLM, load: Load, *, has_tower: bool) -> Iterator[_Unit]:
    config = model.config
    vision, text, cells = config.vision, config.text, config.projector.cells
    patches = 1 + config.tokens_per_tile * cells
    positions = load.tiles * patches if has_tower else 0.0
    slots, width, made = load.tiles * config.tokens_per_tile, cells * vision.width, text.width
    yield _Unit(
        name="vit.embed",
        module=model.vit.embed,
        positions=positions,
        passed=0,
        width=vision.width,
    )
    attention = 4.0 * patches * vision.width
    for index, block in enumerate(model.vit.layers):
        yield _Unit(
            name=f"vit.layers.{index}",
            module=block,
            positions=positions,
            passed=_vision_values(vision),
            width=vision.width,
            attention=attention,
        )
    yield _Unit(
        name="projector",
        module=model.projector,
        positions=slots,
        passed=width + made,
        width=width,
    )
    angles = 2 * text.head_dim
    yield _Unit(name="llm.embed", module=model.llm.embed, positions=load.tokens, passed=angles, width=made)
    attention = 2.0 * load.attended * text.num_heads * text.head_dim  # half of it is masked
    for index, block in enumerate(model.llm.layers):
        yield _Unit(
            name=f"llm.layers.{index}",
            module=block,
            positions=load.tokens,
            passed=_text_values(text),
            width=made,
            attention=attention,
        )
    yield _Unit(name="llm.norm", module=model.llm.norm, positions=load.tokens, passed=made, width=made)
    yield _Unit(name="llm.head", module=model.llm.head, positions=load.trained, passed=made, width=made)


def _vision_values(config: VisionConfig) -> float:
    """What a block keeps for each position without training: inputs of the norms, q, k, v, input of GELU."""
    normed = 2 if config.qk_norm else 0
    return (5 + normed) * config.width + config.mlp_width


def _text_values(config: TextConfig) -> float:
    """As `_vision_values`, with gate and up."""
    qkv = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    return 2 * config.width + (2 if config.qk_norm else 1) * qkv + 2 * config.mlp_width


def _trained_values(module: nn.Module) -> float:
    """What trained parameters keep for each position: a matrix its input, a scale what it multiplies.

    The biases and the scale of a layer norm keep nothing more, DoRA's lengths multiply two products.
    """
    total = 0.0
    for part in module.modules():
        if isinstance(part, (nn.Embedding, nn.LayerNorm)):
            continue
        trained = {name: p for name, p in part.named_parameters(recurse=False) if p.requires_grad}
        total += max((p[0].numel() for p in trained.values() if p.dim() in (2, 4)), default=0)
        for name, p in trained.items():
            if p.dim() == 1 and name != "bias":
                total += p.numel() * (2 if name == "lora_magnitude" else 1)
    return total


def _matrices(module: nn.Module, *, is_trained: bool = False) -> int:
    """Entries that take part in products: everything with two dimensions or more but tables."""
    values: list[Tensor] = [p for p in module.parameters() if p.requires_grad or not is_trained]
    if not is_trained:
        values += [buffer for buffer in module.buffers() if buffer.dtype == torch.int8]
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    return sum(x.numel() for x in values if x.dim() in (2, 4) and id(x) not in tables)


def _recomputed(recipe: Recipe, name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in recipe.execution.recompute)


def step_flops(model: VLM, recipe: Recipe, load: Load) -> float:
    """Forward, gradients of inputs where something before is trained, gradients of trained weights."""
    total, has_gradient = 0.0, False
    for unit in _units(model, load, has_tower=not recipe.execution.cache_features):
        has_gradient |= any(p.requires_grad for p in unit.module.parameters())
        again = has_gradient and _recomputed(recipe, unit.name)
        passes = 1 + int(has_gradient) + int(again)
        products = 2 * (passes * _matrices(unit.module) + _matrices(unit.module, is_trained=True))
        attention = unit.attention * (1 + 2 * int(has_gradient) + int(again))
        total += unit.positions * (products + attention)
    return total


def activation_bytes(model: VLM, recipe: Recipe, load: Load) -> float:
    """Bytes kept at the end of the forward pass, with one recomputed block and a chunk of logits on top."""
    narrow = recipe.execution.autocast is not None or model.llm.norm.weight.dtype != torch.float32
    size = AUTOCAST_BYTES if narrow else FLOAT
    total, largest, copies, has_gradient = 0.0, 0.0, 0.0, False
    for unit in _units(model, load, has_tower=not recipe.execution.cache_features):
        is_trained = any(p.requires_grad for p in unit.module.parameters())
        has_gradient |= is_trained
        if not has_gradient or not unit.positions:
            continue
        values = unit.positions * (unit.passed + _trained_values(unit.module))
        if _recomputed(recipe, unit.name):
            total += unit.positions * unit.width * FLOAT
            largest = max(largest, values * size)
        else:
            total += values * size
            copies += 2.0 * _matrices(unit.module) * int(recipe.execution.autocast is not None)
    head = model.llm.head
    logits = 2 * FLOAT * min(load.trained * head.out_features, LOGITS_AT_ONCE)
    gradient = FLOAT * sum(p.numel() for p in head.parameters() if p.requires_grad)
    return total + largest + copies + logits + gradient
