"""InternVL 2.5 in three stages: projector warm-up, incremental learning of the tower, full tuning (arXiv
2412.05271).

All stages pack: 512 sequences of up to 16,384 tokens and 48 tiles a step, tokens weighted by the square root
of their answer's length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from internvl.recipes import parts
from internvl.training.objective_spec import NextToken
from internvl.training.recipe import AdamW, ModelSpec, Recipe, Rule, Schedule

Size = Literal["1b", "2b", "4b", "8b", "26b", "38b", "78b"]
PACKS, TOKENS = 512, 16_384


class _Row(NamedTuple):
    checkpoint: str
    weight_decay: float
    drop_path: float
    full_lr: float
    full_steps: int


ROWS: Mapping[Size, _Row] = {
    "1b": _Row("InternVL2_5-1B", 0.01, 0.1, 4e-5, 22_000),
    "2b": _Row("InternVL2_5-2B", 0.01, 0.1, 4e-5, 22_000),
    "4b": _Row("InternVL2_5-4B", 0.01, 0.1, 4e-5, 11_000),
    "8b": _Row("InternVL2_5-8B", 0.05, 0.1, 4e-5, 5_500),
    "26b": _Row("InternVL2_5-26B", 0.05, 0.4, 2e-5, 5_500),
    "38b": _Row("InternVL2_5-38B", 0.05, 0.4, 2e-5, 5_500),
    "78b": _Row("InternVL2_5-78B", 0.05, 0.4, 2e-5, 5_500),
}


def stage1(size: Size) -> Recipe:
    """Projector alone, from scratch, at 2e-4; the released limit is 100,000 steps."""
    row = ROWS[size]
    settings = AdamW(lr=2e-4, weight_decay=row.weight_decay)
    model = ModelSpec(checkpoint=row.checkpoint, fresh_projector=True, drop_path=0.0, max_tiles=12)
    return _stage(f"v2.5-{size}-stage1", model, parts.projector(settings), 100_000, parts.STEPS_100)


def stage1_5(size: Literal["8b", "26b"]) -> Recipe:
    """Tower and projector at 1e-5; the language model stays frozen."""
    row = ROWS[size]
    settings = AdamW(lr=1e-5, weight_decay=row.weight_decay)
    model = ModelSpec(checkpoint=row.checkpoint, drop_path=row.drop_path, max_tiles=12)
    return _stage(f"v2.5-{size}-stage1.5", model, parts.all_but_language(settings), 100_000, parts.STEPS_100)


def stage2(size: Size) -> Recipe:
    """Everything learns."""
    row = ROWS[size]
    settings = AdamW(lr=row.full_lr, weight_decay=row.weight_decay)
    model = ModelSpec(checkpoint=row.checkpoint, drop_path=row.drop_path, max_tiles=12)
    return _stage(f"v2.5-{size}-stage2", model, parts.everything(settings), row.full_steps, parts.PERCENT_3)


def _stage(name: str, model: ModelSpec, rules: tuple[Rule, ...], steps: int, schedule: Schedule) -> Recipe:
    return Recipe(
        name=name,
        model=model,
        params=rules,
        data=parts.packs(PACKS, TOKENS),
        objective=NextToken(reduction="square"),
        steps=steps,
        schedule=schedule,
        execution=parts.EXECUTION,
    )
