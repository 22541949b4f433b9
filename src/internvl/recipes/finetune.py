"""Fine-tuning a released model: on one's own data, as the published second fine-tunes, and for a domain.

`lora` and `full` are where one's own data begins; the others repeat released scripts with their numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

from internvl.adapt.lora import LoRA
from internvl.recipes import parts
from internvl.training.objective_spec import NextToken
from internvl.training.recipe import AdamW, Evaluation, Execution, ModelSpec, Recipe, Saving

LANGUAGE = r"llm\.layers\.\d+\.(attn|mlp)\..*"
TOWER = r"vit\.layers\.\d+\.(attn|mlp)\..*"
DROPOUT = 0.05
"""Of every released adapter."""


class _Row(NamedTuple):
    checkpoint: str
    lr: float
    weight_decay: float
    drop_path: float
    length: int
    tiles: int


ROWS: Mapping[str, _Row] = {
    "v1.5-2b": _Row("Mini-InternVL-Chat-2B-V1-5", 4e-5, 0.01, 0.1, 4096, 12),
    "v1.5-4b": _Row("Mini-InternVL-Chat-4B-V1-5", 4e-5, 0.05, 0.1, 4096, 12),
    "v1.5-20b": _Row("InternVL-Chat-V1-5", 2e-5, 0.05, 0.4, 4096, 12),
    "v2-1b": _Row("InternVL2-1B", 4e-5, 0.01, 0.1, 4096, 6),
    "v2-2b": _Row("InternVL2-2B", 4e-5, 0.01, 0.1, 4096, 6),
    "v2-4b": _Row("InternVL2-4B", 4e-5, 0.01, 0.1, 4096, 6),
    "v2-8b": _Row("InternVL2-8B", 4e-5, 0.05, 0.1, 4096, 6),
    "v2-26b": _Row("InternVL2-26B", 2e-5, 0.05, 0.4, 4096, 6),
    "v2-40b": _Row("InternVL2-40B", 2e-5, 0.05, 0.4, 4096, 6),
    "v2-76b": _Row("InternVL2-Llama3-76B", 2e-5, 0.05, 0.4, 4096, 6),
    "v2.5-1b": _Row("InternVL2_5-1B", 4e-5, 0.01, 0.1, 8192, 6),
    "v2.5-2b": _Row("InternVL2_5-2B", 4e-5, 0.01, 0.1, 8192, 6),
    "v2.5-4b": _Row("InternVL2_5-4B", 4e-5, 0.01, 0.1, 8192, 6),
    "v2.5-8b": _Row("InternVL2_5-8B", 4e-5, 0.05, 0.1, 8192, 6),
    "v2.5-26b": _Row("InternVL2_5-26B", 2e-5, 0.05, 0.4, 8192, 6),
    "v2.5-38b": _Row("InternVL2_5-38B", 2e-5, 0.05, 0.4, 8192, 6),
    "v2.5-78b": _Row("InternVL2_5-78B", 2e-5, 0.05, 0.4, 8192, 6),
}

DOMAIN_STEPS: Mapping[str, int] = {"bdd": 240, "drivelm": 15_100, "medical": 2_200, "remote": 2_500}
"""Driving (two sets), medicine, remote sensing: the domain adaptation of Mini-InternVL (arXiv 2410.16261)."""


def lora() -> Recipe:
    """One's own records on any checkpoint: adapters of rank 16 on the language model, the projector as it is.

    Sized for a few hundred to a few thousand records and one machine, with or without a GPU.
    """
    return Recipe(
        name="lora",
        model=ModelSpec(adapters=((LANGUAGE, LoRA(rank=16, dropout=DROPOUT)),)),
        params=parts.adapters(AdamW(lr=2e-4, weight_decay=0.01)),
        data=parts.examples(8, 8192),
        epochs=3,
        schedule=parts.PERCENT_3,
        evaluation=Evaluation(every=50),
        saving=Saving(every=50),
        execution=Execution(autocast="bfloat16"),
    )


def full() -> Recipe:
    """One's own records: projector and language model learn, the tower is frozen."""
    return Recipe(
        name="full",
        params=parts.all_but_tower(AdamW(lr=2e-5, weight_decay=0.01)),
        data=parts.examples(16, 8192),
        epochs=1,
        schedule=parts.PERCENT_3,
        evaluation=Evaluation(every=100),
        saving=Saving(every=100),
        execution=Execution(autocast="bfloat16", cache_features=False),
    )


def second_full(model: str) -> Recipe:
    """The released second fine-tune: projector and language model, batch 128, one epoch."""
    row = ROWS[model]
    return Recipe(
        name=f"{model}-finetune-full",
        model=ModelSpec(checkpoint=row.checkpoint, drop_path=row.drop_path, max_tiles=row.tiles),
        params=parts.all_but_tower(AdamW(lr=row.lr, weight_decay=row.weight_decay)),
        data=parts.examples(128, row.length, group_by_length=True),
        epochs=1,
        schedule=parts.PERCENT_3,
        execution=parts.EXECUTION,
    )


def second_lora(model: str, rank: int = 16) -> Recipe:
    """The released second fine-tune with adapters on the language model, batch 16, one epoch."""
    row = ROWS[model]
    adapters = ((LANGUAGE, LoRA(rank=rank, dropout=DROPOUT)),)
    return Recipe(
        name=f"{model}-finetune-lora",
        model=ModelSpec(checkpoint=row.checkpoint, drop_path=0.0, max_tiles=row.tiles, adapters=adapters),
        params=parts.adapters(AdamW(lr=row.lr, weight_decay=row.weight_decay)),
        data=parts.examples(16, row.length, group_by_length=True),
        epochs=1,
        schedule=parts.PERCENT_3,
        execution=parts.EXECUTION,
    )


def coco_lora(generation: Literal["v1.5", "v2", "v2.5"]) -> Recipe:
    """The COCO caption tutorial: rank 128 on the 2B model, batch 512, one epoch of
    coco_karpathy_train_567k."""
    row = ROWS[f"{generation}-2b"]
    adapters = ((LANGUAGE, LoRA(rank=128, dropout=DROPOUT)),)
    return Recipe(
        name=f"{generation}-2b-coco-lora",
        model=ModelSpec(checkpoint=row.checkpoint, drop_path=0.0, max_tiles=6, adapters=adapters),
        params=parts.adapters(AdamW(lr=4e-5, weight_decay=0.01)),
        data=parts.examples(512, row.length, group_by_length=True),
        epochs=1,
        schedule=parts.PERCENT_3,
        execution=parts.EXECUTION,
    )


def domain(name: str, checkpoint: str = "InternVL2-2B") -> Recipe:
    """Domain adaptation: everything learns; eight packs of 16,384 tokens, records of at most 8,192."""
    return Recipe(
        name=f"domain-{name}",
        model=ModelSpec(checkpoint=checkpoint, drop_path=0.1, max_tiles=12),
        params=parts.everything(AdamW(lr=1e-5, weight_decay=0.01)),
        data=replace(parts.packs(8, 16_384), max_length=8192),
        objective=NextToken(reduction="square"),
        steps=DOMAIN_STEPS[name],
        schedule=parts.PERCENT_3,
        execution=parts.EXECUTION,
    )
