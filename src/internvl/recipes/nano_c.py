r"""How `nano-c` is trained: InternVL-C and -G from nano's repaired tower, with its language model as QLLaMA.

    internvl train nano-c-1 --model runs/nano-1.5/model --data DATA/flickr8k/train.jsonl --out runs/nano-c-1 \
        --set model.contrastive.language=runs/nano-1.5/model
    internvl train nano-c-2 --model runs/nano-c-1/model --data DATA/flickr8k/train.jsonl --out runs/nano-c-2
    python -m internvl.recipes.nano_c_assets runs/nano-c-1/deltas runs/nano-c-2/model OUT

The stages follow InternVL 1.0 (arXiv 2312.14238): first pictures and texts learn to agree, then, with all of
that frozen, query tokens learn to compare, to match and to write. The first stage can go on from what is
shipped, with the query tokens as they are:

    python -m internvl.recipes.nano_restart nano-c runs/base-c runs/adapter-c
    internvl train nano-c-3 --model runs/base-c --data runs/data/pairs.json --out runs/nano-c-3 \
        --set model.adapter=runs/adapter-c --set steps=220
    python -m internvl.recipes.nano_c_assets runs/nano-c-3/deltas runs/nano-c-3/model OUT
"""

from __future__ import annotations

from dataclasses import replace

from internvl.adapt.lora import LoRA
from internvl.data.spec import Batching, DataSpec
from internvl.recipes import parts
from internvl.training.contrastive_parts import ContrastiveParts
from internvl.training.objective_spec import Contrastive, Stage2
from internvl.training.recipe import AdamW, Evaluation, Execution, ModelSpec, Recipe, Saving, Schedule

BETAS = (0.9, 0.98)
QUERIES = r"(qllama\.queries|.*\.cross\..*|query_pool\..*|itm_head\..*|logit_scale)"
"""What stage 2 trains."""

TEXT_LAYERS = r"qllama\.layers\.\d+\.(attn|mlp)\..*"
UPPER_ADAPTERS = r"qllama\.layers\.(1[5-9]|2\d)\..*\.lora_(down|up|magnitude)"
"""Of thirty layers those of the upper half: what is below is not computed backwards."""

COMMON_SPACE = r"(image_pool\..*|text_projection|logit_scale)"
SHAPE = ContrastiveParts(language="nano", num_queries=16, cross_every=5, embed_dim=256, pool_heads=12)
EXECUTION = Execution(autocast="bfloat16", cache_features=True)


def compare() -> Recipe:
    """Stage 1: adapters on the text model, pool and projections; pictures against texts in two languages."""
    return Recipe(
        name="nano-c-1",
        model=ModelSpec(contrastive=SHAPE, frozen_dtype="bfloat16", adapters=((TEXT_LAYERS, LoRA(rank=16)),)),
        params=(
            (parts.ADAPTERS, AdamW(lr=1e-3, betas=BETAS)),
            (COMMON_SPACE, AdamW(lr=1e-3, betas=BETAS)),
            parts.FROZEN,
        ),
        objective=Contrastive(),
        data=DataSpec(batching=Batching(examples=128, max_tokens=80, max_tiles=1)),
        steps=500,
        schedule=Schedule(warmup=30),
        evaluation=Evaluation(every=100, examples=200, metric="recall"),
        saving=Saving(every=50),
        execution=EXECUTION,
    )


def query() -> Recipe:
    """Stage 2: query tokens, their cross attention and pool learn to compare, to match and to write."""
    return Recipe(
        name="nano-c-2",
        model=ModelSpec(checkpoint="nano-c", frozen_dtype="bfloat16"),
        params=(
            (QUERIES, AdamW(lr=1e-3, betas=BETAS, weight_decay=0.02)),
            parts.FROZEN,
        ),
        objective=Stage2(matches="half"),
        data=DataSpec(batching=Batching(examples=64, max_tokens=80, max_tiles=1)),
        steps=300,
        schedule=Schedule(warmup=20),
        evaluation=Evaluation(every=100, examples=200, metric="recall"),
        saving=Saving(every=50),
        execution=EXECUTION,
    )


def compare_on() -> Recipe:
    """Stage 1 goes on: the upper half of the adapters, pool and projections; `model.adapter` says where the
    adapters are."""
    start = compare()
    return replace(
        start,
        name="nano-c-3",
        model=replace(start.model, checkpoint="nano-c", contrastive=None),
        params=(
            (UPPER_ADAPTERS, AdamW(lr=7e-4, betas=BETAS)),
            (COMMON_SPACE, AdamW(lr=7e-4, betas=BETAS)),
            parts.FROZEN,
        ),
        schedule=Schedule(warmup=20),
    )
