"""What a step computes: records to tokens and tiles, to operations and saved values.

Works on a model whose parameters the recipe's rules have frozen, on the meta device too; nothing is run. The
parts of the work are those of `training.work_units`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from internvl.data.example import Size
from internvl.models.dual_encoder import DualEncoder
from internvl.models.vlm import VLM
from internvl.processing.texts import MAX_TOKENS
from internvl.training.cross_entropy import LOGITS_AT_ONCE
from internvl.training.recipe import Recipe
from internvl.training.work_units import HEADS, Load, Unit, units

FLOAT = 4
AUTOCAST_BYTES = 2.4
"""Of a saved value on average: products are kept in two bytes, norms and the residual stream in four."""


def step_load(model: VLM | DualEncoder, recipe: Recipe, sizes: Sequence[Size] | None) -> Load:
    """The mean step of records like `sizes`, or one of records at the recipe's limits."""
    batching = recipe.data.batching
    if sizes:
        tokens, tiles, trained = (
            sum(values) / len(sizes)
            for values in zip(*((size.tokens, size.tiles, size.trained) for size in sizes), strict=True)
        )
        attended = sum(size.tokens**2 for size in sizes) / len(sizes) / tokens
    else:
        tokens, tiles, trained = _limits(model, recipe)
        attended = tokens
    records = float(batching.examples or 0)
    if batching.packs is not None:
        fitting = batching.max_tokens / tokens
        records = batching.packs * (min(fitting, batching.max_tiles / tiles) if tiles else fitting)
    return Load(tokens=records * tokens, tiles=records * tiles, trained=records * trained, attended=attended)


def _limits(model: VLM | DualEncoder, recipe: Recipe) -> tuple[float, float, float]:
    """Tokens, tiles and trained tokens of the longest record that the recipe allows."""
    batching = recipe.data.batching
    tokens = float(min(recipe.data.max_length, batching.max_tokens))
    if isinstance(model, DualEncoder):
        tokens = min(tokens, float(MAX_TOKENS))
        return tokens, 1.0, tokens
    config = model.config
    most = min(batching.max_tiles, config.tiling.max_tiles + 1 if config.tiling.dynamic else 1)
    tiles = float(min(most, tokens // config.tokens_per_tile))
    return tokens, tiles, tokens - tiles * config.tokens_per_tile


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


def step_flops(model: VLM | DualEncoder, recipe: Recipe, load: Load) -> float:
    """Forward, gradients of inputs where something before is trained, gradients of trained weights."""
    total, has_gradient = 0.0, False
    for unit in units(model, recipe, load):
        has_gradient = _reaches(unit, has_gradient)
        again = has_gradient and _recomputed(recipe, unit.name)
        passes = 1 + int(has_gradient) + int(again)
        products = 2 * (passes * _matrices(unit.module) + _matrices(unit.module, is_trained=True))
        attention = unit.attention * (1 + 2 * int(has_gradient) + int(again))
        total += unit.positions * (products + attention)
    return total


def _reaches(unit: Unit, has_gradient: bool) -> bool:
    """Whether a gradient comes back through the unit: something in it, or before it, is trained."""
    before = has_gradient if unit.begins is None else unit.begins
    return before or any(p.requires_grad for p in unit.module.parameters())


def activation_bytes(model: VLM | DualEncoder, recipe: Recipe, load: Load) -> float:
    """Bytes kept at the end of the forward pass, with one recomputed block and a chunk of logits on top."""
    decoder = model.qllama if isinstance(model, DualEncoder) else model.llm
    narrow = recipe.execution.autocast is not None or decoder.norm.weight.dtype != torch.float32
    size = AUTOCAST_BYTES if narrow else FLOAT
    total, largest, copies, logits, has_gradient = 0.0, 0.0, 0.0, 0.0, False
    for unit in units(model, recipe, load):
        has_gradient = _reaches(unit, has_gradient)
        if unit.name in HEADS:
            logits += _logit_bytes(unit)
        if not has_gradient or not unit.positions:
            continue
        values = unit.positions * (unit.passed + _trained_values(unit.module))
        if _recomputed(recipe, unit.name):
            total += unit.positions * unit.width * FLOAT
            largest = max(largest, values * size)
        else:
            total += values * size
            copies += 2.0 * _matrices(unit.module) * int(recipe.execution.autocast is not None)
    return total + largest + copies + logits


def _logit_bytes(head: Unit) -> float:
    """A chunk of logits with its gradient, and the gradient of the head's own weights."""
    rows = max(p.shape[0] for p in head.module.parameters())
    gradient = FLOAT * sum(p.numel() for p in head.module.parameters() if p.requires_grad)
    return 2 * FLOAT * min(head.positions * rows, LOGITS_AT_ONCE) + gradient
