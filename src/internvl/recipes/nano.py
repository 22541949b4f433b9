r"""How the default model is trained: tower, projector, both, then adapters on the whole mixture.

    python -m internvl.recipes.nano_tower DATA runs/tower           the tower, by distillation
    python -m internvl.recipes.nano_probe DATA runs/tower/model     what that did for it
    python -m internvl.recipes.nano_data DATA runs/data             the mixture as records
    internvl train nano-1 --model runs/tower/model --data runs/data/captions.json --out runs/nano-1
    internvl train nano-1.5 --model runs/nano-1/model --data runs/data/captions.json --out runs/nano-1.5
    internvl train nano-2 --model runs/nano-1.5/model --data runs/data/all.json --out runs/nano-2
    internvl train nano-3 --model runs/nano-1.5/model --data runs/data/agreed.json \
        --set model.adapter=runs/nano-2/adapter --out runs/nano-3
    python -m internvl.recipes.nano_tower DATA runs/tower-2 --start runs/nano-1.5/model --steps 850
    internvl train nano-3 --model runs/tower-2/model --data runs/data/more.json \
        --set model.adapter=runs/nano-3/adapter --set steps=960 --out runs/nano-3-more
    internvl train nano-4 --model runs/tower-2/model --data runs/data/captions.json \
        --set model.adapter=runs/nano-3-more/adapter --out runs/nano-4
    python -m internvl.recipes.nano_assets runs/tower-2/model runs/nano-4/adapter OUT

The stages follow InternVL 2.5 (arXiv 2412.05271); what the run behind the shipped weights did otherwise is in
docs/model-cards/nano.md.
"""

from __future__ import annotations

from dataclasses import replace

from internvl.adapt.lora import LoRA
from internvl.data.spec import Batching, DataSpec
from internvl.recipes import parts
from internvl.recipes.finetune import LANGUAGE
from internvl.training.objective_spec import SelfCritical
from internvl.training.recipe import AdamW, Evaluation, Execution, ModelSpec, Recipe, Rule, Saving, Schedule

TUNED_BLOCKS = r"vit\.layers\.(5|6|7|8|9|10|11)\..*"
"""Of twelve. Earlier ones keep what DINOv2 taught them, and need not be shipped."""

BETAS = (0.9, 0.98)
MIXTURE = DataSpec(batching=Batching(examples=8, max_tokens=1024, max_tiles=1), max_length=1024)
EXECUTION = Execution(autocast="bfloat16")


def align() -> Recipe:
    """Stage 1: a new projector on captions; tower and language model frozen."""
    return Recipe(
        name="nano-1",
        model=ModelSpec(select_layer=-1, fresh_projector=True, frozen_dtype="bfloat16"),
        params=parts.projector(AdamW(lr=2e-3, betas=BETAS)),
        data=MIXTURE,
        steps=200,
        schedule=Schedule(warmup=20, final=0.2),
        evaluation=Evaluation(every=100),
        saving=Saving(every=100),
        execution=EXECUTION,
    )


def tune_tower() -> Recipe:
    """Stage 1.5: the tower's upper blocks learn with the projector."""
    rules: tuple[Rule, ...] = (
        (TUNED_BLOCKS, AdamW(lr=5e-5, betas=BETAS, weight_decay=0.02)),
        (r"projector\..*", AdamW(lr=5e-4, betas=BETAS)),
        parts.FROZEN,
    )
    return Recipe(
        name="nano-1.5",
        model=ModelSpec(frozen_dtype="bfloat16"),
        params=rules,
        data=MIXTURE,
        steps=250,
        schedule=Schedule(warmup=20, final=0.2),
        evaluation=Evaluation(every=125),
        saving=Saving(every=50),
        execution=EXECUTION,
    )


def instruct() -> Recipe:
    """Stage 2: adapters on the language model, and the projector, on captions, questions and words."""
    return Recipe(
        name="nano-2",
        model=ModelSpec(frozen_dtype="bfloat16", adapters=((LANGUAGE, LoRA(rank=16)),)),
        params=(
            (parts.ADAPTERS, AdamW(lr=5e-4, betas=BETAS)),
            (r"projector\..*", AdamW(lr=5e-4, betas=BETAS)),
            parts.FROZEN,
        ),
        data=MIXTURE,
        steps=2000,
        schedule=Schedule(warmup=100),
        evaluation=Evaluation(every=500),
        saving=Saving(every=100),
        execution=EXECUTION,
    )


def agree() -> Recipe:
    """Stage 3: the adapters go on with those captions of a photo that its others agree with; `model.adapter`
    says where they are."""
    return replace(
        instruct(),
        name="nano-3",
        params=(
            (parts.ADAPTERS, AdamW(lr=3e-4, betas=BETAS)),
            (r"projector\..*", AdamW(lr=3e-4, betas=BETAS)),
            parts.FROZEN,
        ),
        steps=600,
        schedule=Schedule(warmup=20),
        evaluation=Evaluation(every=200),
    )


def score() -> Recipe:
    """Stage 4: of the captions that it draws itself, those that score better become likely; `model.adapter`
    as in stage 3."""
    return replace(
        instruct(),
        name="nano-4",
        params=((parts.ADAPTERS, AdamW(lr=1.5e-4, betas=BETAS)), parts.FROZEN),
        objective=SelfCritical(samples=8, temperature=0.7),
        data=replace(MIXTURE, batching=replace(MIXTURE.batching, examples=16)),
        steps=100,
        schedule=Schedule(warmup=5, final=0.2),
        evaluation=Evaluation(every=50, examples=100, metric="cider"),
    )
