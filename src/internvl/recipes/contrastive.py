"""Learning to compare pictures and texts: the two stages of InternVL 1.0, and fine-tuning for retrieval.

Numbers of the stages: arXiv 2312.14238; of fine-tuning: the released scripts (`internvl_g`). A stage compares
the pairs of a whole step: batch sizes are global, shared by processes alone. Rows have a picture and captions
(`data.records`); one is drawn at each look.

    internvl train 14b-retrieval-head-flickr30k --data captions.jsonl

For one's own captions on a machine without a GPU see `recipes.nano_c`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from internvl.adapt.lora import LoRA
from internvl.data.spec import Batching, DataSpec
from internvl.recipes import parts
from internvl.training.contrastive_parts import ContrastiveParts
from internvl.training.objective_spec import Contrastive, Stage2
from internvl.training.recipe import AdamW, Execution, ModelSpec, Recipe, Rule, Schedule

TEXT = r"qllama\.layers\.\d+\.(attn|mlp)\..*"
TOWER = r"vit\.layers\.\d+\.(attn|mlp)\..*"
QUERIES = r"qllama\.(queries|layers\.\d+\.cross\..*)|(query_pool|itm_head)\..*"
UNUSED = r"qllama\.head\..*|" + QUERIES
"""What pictures and texts are not embedded with in mode C."""
POOLS = r"(image_pool|query_pool|itm_head)\..*|text_projection|logit_scale"

EXECUTION = Execution(autocast="bfloat16", recompute=(r"vit\.layers\.\d+", r"qllama\.layers\.\d+"))
TUNED = "InternVL-14B-224px"
MAX_TOKENS = 80


EPOCHS: Mapping[str, int] = {"flickr30k": 10, "flickr30k-cn": 10, "coco": 5}
"""Of retrieval fine-tuning, by data set."""

Kind = Literal["full", "head", "lora"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def pairs(count: int, *, clean: bool = False) -> DataSpec:
    """A step of `count` pairs."""
    return DataSpec(max_length=MAX_TOKENS, clean_captions=clean, batching=Batching(examples=count))


def stage1() -> Recipe:
    """InternVL-C: tower and text model learn together on 28.7 billion pairs, 164 thousand a step.

    The text model begins as LLaMA-7B (`--set model.contrastive.language=PATH`), the tower as the released
    one; the published run began with a new tower.
    """
    settings = AdamW(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    return Recipe(
        name="14b-stage1",
        model=ModelSpec(
            checkpoint="InternViT-6B-224px",
            drop_path=0.2,
            contrastive=ContrastiveParts(language="LLaMA-7B", num_queries=96),
        ),
        params=((UNUSED, None), (".*", settings)),
        data=pairs(164_000),
        objective=Contrastive(),
        steps=175_000,
        schedule=Schedule(warmup=5000),
        execution=EXECUTION,
    )


def stage2() -> Recipe:
    """InternVL-G: queries and cross attention learn, 20 thousand pairs a step; tower and text model are
    frozen."""
    return Recipe(
        name="14b-stage2",
        model=ModelSpec(checkpoint=TUNED),
        params=((QUERIES, AdamW(lr=5e-5, betas=(0.9, 0.98), weight_decay=0.05)), parts.FROZEN),
        data=pairs(20_000),
        objective=Stage2(),
        steps=80_000,
        schedule=Schedule(warmup=2000),
        execution=EXECUTION,
    )


def retrieval(kind: Kind, data: str) -> Recipe:
    """Retrieval fine-tuning as released: "full" at 364 pixels in steps of 1024 pairs with layer decay, "head"
    (pools and projections) and "lora" (rank 16 on tower and text model) at 224 pixels in steps of 128."""
    is_full = kind == "full"
    model = {
        "full": ModelSpec(checkpoint=TUNED, drop_path=0.3, image_size=364),
        "head": ModelSpec(checkpoint=TUNED),
        "lora": ModelSpec(checkpoint=TUNED, adapters=(("|".join((TOWER, TEXT)), LoRA(rank=16)),)),
    }[kind]
    return Recipe(
        name=f"14b-retrieval-{kind}-{data}",
        model=model,
        params=_retrieval_rules(kind),
        data=pairs(1024 if is_full else 128, clean=True),
        objective=Stage2(itg=0.0, soft_targets=True, backbone=True, hard_negatives=False, matches="half"),
        epochs=EPOCHS[data],
        schedule=parts.STEPS_100,
        execution=EXECUTION,
    )


def _retrieval_rules(kind: Kind) -> tuple[Rule, ...]:
    settings = AdamW(lr=1e-6, weight_decay=0.05)
    if kind == "full":
        decayed = AdamW(lr=1e-6, weight_decay=0.05, layer_decay=0.9)
        # The released scripts count the temperature among the embeddings, below 32 blocks.
        scale = AdamW(lr=1e-6 * 0.9**33, weight_decay=0.05)
        return ((r"qllama\.head\..*", None), ("logit_scale", scale), (".*", decayed))
    if kind == "lora":
        return ((parts.ADAPTERS, settings), (POOLS, settings), parts.FROZEN)
    return ((POOLS, settings), parts.FROZEN)
