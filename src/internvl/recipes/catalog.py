"""All recipes by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from internvl.errors import UnknownNameError
from internvl.recipes import contrastive, finetune, mpo, nano, nano_c, v1_5, v2_5
from internvl.training.recipe import Recipe

Make = Callable[[], Recipe]

_OWN: tuple[Make, ...] = (
    *(finetune.lora, finetune.full),
    *(nano.align, nano.tune_tower, nano.instruct, nano.agree, nano.score),
    *(nano_c.compare, nano_c.query, nano_c.compare_on),
)
_PUBLISHED: tuple[Make, ...] = (
    *(partial(stage, size) for size in v1_5.ROWS for stage in (v1_5.pretrain, v1_5.sft)),
    *(partial(stage, size) for size in v2_5.ROWS for stage in (v2_5.stage1, v2_5.stage2)),
    *(partial(v2_5.stage1_5, size) for size in ("8b", "26b")),
    *(
        partial(tune, model)
        for model in finetune.ROWS
        for tune in (finetune.second_full, finetune.second_lora)
    ),
    *(partial(finetune.coco_lora, generation) for generation in ("v1.5", "v2", "v2.5")),
    *(partial(finetune.domain, name) for name in finetune.DOMAIN_STEPS),
    *(partial(mpo.mpo, model) for model in mpo.ROWS),
    contrastive.stage1,
    contrastive.stage2,
    *(
        partial(contrastive.retrieval, kind, data)
        for kind in contrastive.KINDS
        for data in contrastive.EPOCHS
    ),
)
RECIPES: Mapping[str, Make] = {make().name: make for make in (*_OWN, *_PUBLISHED)}


def names() -> tuple[str, ...]:
    return tuple(RECIPES)


def find(name: str) -> Recipe:
    """The recipe called `name`. Raises UnknownNameError, with the nearest names."""
    if name not in RECIPES:
        close = [other for other in RECIPES if name.split("-")[0] in other][:6] or list(RECIPES)[:6]
        raise UnknownNameError(
            f"no recipe {name!r}; for example {', '.join(close)} (`internvl train --list` shows all)"
        )
    return RECIPES[name]()
