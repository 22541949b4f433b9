"""Mixed preference optimisation of InternVL2, 2.5 and 3 (arXiv 2411.10442): pairs of a chosen and a rejected
answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from internvl.recipes import parts
from internvl.training.objective_spec import Preference
from internvl.training.recipe import AdamW, ModelSpec, Recipe


class _Row(NamedTuple):
    checkpoint: str
    lr: float
    length: int
    drop_path: float


ROWS: Mapping[str, _Row] = {
    "v2-8b": _Row("InternVL2-8B", 5e-6, 6144, 0.1),
    "v2.5-1b": _Row("InternVL2_5-1B", 1e-6, 8192, 0.1),
    "v2.5-8b": _Row("InternVL2_5-8B", 1e-6, 8192, 0.1),
    "v3-8b": _Row("InternVL3-8B", 2e-7, 12_288, 0.1),
}


def mpo(model: str) -> Recipe:
    """Everything learns against a frozen copy of the start, batch 256, one epoch of MMPR."""
    row = ROWS[model]
    return Recipe(
        name=f"{model}-mpo",
        model=ModelSpec(checkpoint=row.checkpoint, drop_path=row.drop_path),
        params=parts.everything(AdamW(lr=row.lr, weight_decay=0.05)),
        data=parts.examples(256, row.length),
        objective=Preference(reference="copy"),
        epochs=1,
        schedule=parts.PERCENT_3,
        execution=parts.EXECUTION,
    )
