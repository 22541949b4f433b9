"""InternVL-Chat 1.5 and Mini-InternVL 1.5: alignment, then full instruction tuning (arXiv 2404.16821)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from internvl.recipes import parts
from internvl.training.recipe import AdamW, ModelSpec, Recipe

Size = Literal["2b", "4b", "20b"]


class _Row(NamedTuple):
    checkpoint: str
    pretrain_lr: float
    tower_learns: bool
    pretrain_drop: float
    sft_lr: float
    sft_drop: float
    sft_length: int
    weight_decay: float


ROWS: Mapping[Size, _Row] = {
    "2b": _Row("Mini-InternVL-Chat-2B-V1-5", 2e-5, True, 0.1, 4e-5, 0.1, 8192, 0.01),
    "4b": _Row("Mini-InternVL-Chat-4B-V1-5", 2e-4, False, 0.0, 4e-5, 0.1, 8192, 0.05),
    "20b": _Row("InternVL-Chat-V1-5", 1e-5, True, 0.2, 2e-5, 0.4, 4096, 0.05),
}


def pretrain(size: Size) -> Recipe:
    """Projector, and except for 4B the tower, learn; the language model is frozen. Batch 2048, one epoch."""
    row = ROWS[size]
    settings = AdamW(lr=row.pretrain_lr, weight_decay=row.weight_decay)
    return Recipe(
        name=f"v1.5-{size}-pretrain",
        model=ModelSpec(
            checkpoint=row.checkpoint, fresh_projector=True, drop_path=row.pretrain_drop, max_tiles=12
        ),
        params=parts.all_but_language(settings) if row.tower_learns else parts.projector(settings),
        data=parts.examples(2048, 4096),
        epochs=1,
        schedule=parts.STEPS_100,
        execution=parts.EXECUTION,
    )


def sft(size: Size) -> Recipe:
    """Everything learns. Batch 1024, one epoch, records of like length together."""
    row = ROWS[size]
    return Recipe(
        name=f"v1.5-{size}-sft",
        model=ModelSpec(checkpoint=row.checkpoint, drop_path=row.sft_drop, max_tiles=12),
        params=parts.everything(AdamW(lr=row.sft_lr, weight_decay=row.weight_decay)),
        data=parts.examples(1024, row.sft_length, group_by_length=True),
        epochs=1,
        schedule=parts.PERCENT_3,
        execution=parts.EXECUTION,
    )
