"""The parts of a model in the order of a step's work: how many positions each computes, and what it keeps.

Numbers of kept values follow from what the layers of `models` hold for their backward pass. Nothing is run,
and modules may be on the meta device. Knows no dtypes and no rules. Shape letters: N pictures or tiles, Q
queries, T tokens, B pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from internvl.config import TextConfig, VisionConfig
from internvl.models.decoder import Decoder
from internvl.models.dual_encoder import DualEncoder
from internvl.models.pooling import AttentionPool
from internvl.models.qllama import CrossAttention, QLlama, QueryBlock
from internvl.models.vit import VisionTower
from internvl.models.vlm import VLM
from internvl.training.evaluate_pairs import modes_of
from internvl.training.objective_spec import ObjectiveSpec, Stage2
from internvl.training.recipe import Recipe
from internvl.training.shared_prefix import BLOCK

HEADS = ("llm.head", "qllama.head")
"""Units whose products are computed in chunks, and of which nothing but a chunk is kept."""


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
class Unit:
    """A stretch of the model. For each position `passed` values stay where gradients only go through it;
    trained parameters keep more. `begins`: the stretch does not continue the one before, and whether what it
    reads has a gradient."""

    name: str
    module: nn.Module
    positions: float
    passed: float
    width: int
    attention: float = 0.0
    begins: bool | None = None


def units(model: VLM | DualEncoder, recipe: Recipe, load: Load) -> Iterator[Unit]:
    """All of a step's work but the losses."""
    has_tower = not recipe.execution.cache_features
    if isinstance(model, DualEncoder):
        yield from _pair_units(model, recipe.objective, load, has_tower=has_tower)
    else:
        yield from _chat_units(model, load, has_tower=has_tower)


def _chat_units(model: VLM, load: Load, *, has_tower: bool) -> Iterator[Unit]:
    config = model.config
    patches = 1 + config.tokens_per_tile * config.projector.cells
    yield from _tower(model.vit, load.tiles if has_tower else 0.0, patches)
    slots, width = load.tiles * config.tokens_per_tile, config.projector.cells * config.vision.width
    yield Unit(
        name="projector",
        module=model.projector,
        positions=slots,
        passed=width + config.text.width,
        width=width,
    )
    half = load.attended / 2  # the other half is masked, and not computed
    yield from _decoder(model.llm, "llm", config.text, load.tokens, half)
    width = config.text.width
    yield Unit(name="llm.head", module=model.llm.head, positions=load.trained, passed=width, width=width)


def _pair_units(
    model: DualEncoder, objective: ObjectiveSpec, load: Load, *, has_tower: bool
) -> Iterator[Unit]:
    """Pictures to their pool, texts to their last states, and the pass of the query tokens after them."""
    config, pictures = model.config, load.tiles
    patches = 1 + config.vision.grid**2
    yield from _tower(model.vit, pictures if has_tower else 0.0, patches)
    yield from _pool(model.image_pool, "image_pool", pictures, patches)
    yield from _decoder(
        model.qllama, "qllama", config.text, load.tokens, _in_blocks(load.tokens), begins=False
    )
    if isinstance(model.qllama, QLlama) and "G" in modes_of(objective):
        yield from _query_units(model, model.qllama, objective, load, patches)


def _query_units(
    model: DualEncoder, qllama: QLlama, objective: ObjectiveSpec, load: Load, patches: int
) -> Iterator[Unit]:
    """Queries alone or before a caption, and with each text that is matched; texts as long as those that are
    embedded."""
    text, count, pictures = model.config.text, model.config.num_queries, load.tiles
    length = load.tokens / max(1.0, pictures)
    texts, captions = 0, 0.0
    if isinstance(objective, Stage2):
        texts = 0 if not objective.itm else {"half": 1, "both": 2}[objective.matches]
        captions = length if objective.itg else 0.0
    tokens = pictures * ((1 + texts) * count + captions + texts * length)
    is_seen = any(p.requires_grad for p in model.vit.parameters())
    begins = is_seen or qllama.queries.requires_grad
    yield from _decoder(qllama, "qllama", text, tokens, _in_blocks(tokens), begins=begins)
    rows = pictures * (1 + texts)
    for index, block in enumerate(qllama.layers):
        if isinstance(block, QueryBlock):
            yield from _cross(block, f"qllama.layers.{index}", rows * count, pictures * patches, patches)
    yield from _pool(model.query_pool, "query_pool", pictures, count)
    if texts:
        heads = pictures * texts * count
        yield Unit(name="itm_head", module=model.itm_head, positions=heads, passed=0, width=text.width)
    if captions:
        written = pictures * captions
        yield Unit(
            name="qllama.head", module=qllama.head, positions=written, passed=text.width, width=text.width
        )


def _in_blocks(tokens: float) -> float:
    """Short sequences share blocks, of which everything is computed and most is masked."""
    return min(tokens, float(BLOCK))


def _tower(vit: VisionTower, tiles: float, patches: int) -> Iterator[Unit]:
    config, positions = vit.config, tiles * patches
    shared: dict[str, Any] = {"positions": positions, "width": config.width}
    yield Unit(name="vit.embed", module=vit.embed, passed=0, begins=False, **shared)
    values, attention = _vision_values(config), 4.0 * patches * config.width
    for index, block in enumerate(vit.layers):
        yield Unit(name=f"vit.layers.{index}", module=block, passed=values, attention=attention, **shared)


def _pool(pool: AttentionPool, name: str, pictures: float, patches: int) -> Iterator[Unit]:
    """Keys and values of every patch; one query, which is of the same input, and its answer."""
    width = pool.q.in_features
    keys = nn.ModuleList((pool.norm_k, pool.norm_v, pool.k, pool.v))
    attention = 4.0 * width
    yield Unit(
        name=name,
        module=keys,
        positions=pictures * patches,
        passed=3 * width,
        width=width,
        attention=attention,
    )
    asking = nn.ModuleList((pool.norm_q, pool.q, pool.out))
    yield Unit(name=name, module=asking, positions=pictures, passed=4 * width, width=width)


def _decoder(
    decoder: Decoder,
    name: str,
    text: TextConfig,
    tokens: float,
    seen: float,
    *,
    begins: bool | None = None,
) -> Iterator[Unit]:
    """Embedding, blocks and last norm; of blocks with cross attention all but that. `seen`: tokens that one
    token is compared with."""
    width, values = text.width, _text_values(text)
    shared: dict[str, Any] = {"positions": tokens, "width": width}
    yield Unit(name=f"{name}.embed", module=decoder.embed, passed=2 * text.head_dim, begins=begins, **shared)
    attention = 4.0 * seen * text.num_heads * text.head_dim
    for index, block in enumerate(decoder.layers):
        own = nn.ModuleList(part for part in block.children() if not isinstance(part, CrossAttention))
        yield Unit(name=f"{name}.layers.{index}", module=own, passed=values, attention=attention, **shared)
    yield Unit(name=f"{name}.norm", module=decoder.norm, passed=width, **shared)


def _cross(block: QueryBlock, name: str, queries: float, seen: float, patches: int) -> Iterator[Unit]:
    """Of every picture one set of keys and values; of every query its look at them."""
    cross = block.cross
    inner, width = cross.q.out_features, cross.q.in_features
    keys, asking = nn.ModuleList((cross.norm_kv, cross.kv)), nn.ModuleList((cross.norm_q, cross.q, cross.out))
    yield Unit(name=name, module=keys, positions=seen, passed=2 * inner, width=cross.kv.in_features)
    yield Unit(
        name=name,
        module=asking,
        positions=queries,
        passed=width + 2 * inner,
        width=width,
        attention=4.0 * patches * inner,
    )


def _vision_values(config: VisionConfig) -> float:
    """What a block keeps for each position without training: inputs of the norms, q, k, v, input of GELU."""
    normed = 2 if config.qk_norm else 0
    return (5 + normed) * config.width + config.mlp_width


def _text_values(config: TextConfig) -> float:
    """As `_vision_values`, with gate and up."""
    qkv = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    return 2 * config.width + (2 if config.qk_norm else 1) * qkv + 2 * config.mlp_width
