"""The folder of a run: what its files are called, and that it belongs to one recipe.

Knows nothing of what is written there (see `training.run`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from internvl.data.spec import DataSpec
from internvl.errors import TrainingError
from internvl.training import recipe_file
from internvl.training.log import NAME as LOG
from internvl.training.recipe import Recipe
from internvl.training.world import World

RECIPE = "recipe.json"
BAD = "bad_samples.jsonl"
CHECKPOINTS = "checkpoints"
RESUMABLE: frozenset[str] = frozenset(
    {"log_every", "tensorboard", "wandb", "saving", "evaluation", "execution"}
)
"""Fields that may change when a run goes on: they do not decide what is learnt."""


def claim(recipe: Recipe, out: Path, world: World, *, resume: bool) -> None:
    """Makes the folder this recipe's. Raises TrainingError where it is another's that took a step."""
    path = out / RECIPE
    if path.is_file() and _has_begun(out):
        if not resume:
            raise TrainingError(
                f"{out} holds a run already: continue it with --resume, or choose another folder"
            )
        _check_same(recipe_file.dump(recipe_file.read(path)), recipe_file.dump(recipe), path)
    world.barrier()
    if world.is_main:
        if not _has_begun(out):
            (out / BAD).unlink(missing_ok=True)
        recipe_file.write(path, recipe)
    world.barrier()


def _has_begun(out: Path) -> bool:
    """Whether a run has written something of its own: a row of its log, or a checkpoint."""
    log = out / LOG
    return (log.is_file() and log.stat().st_size > 0) or any((out / CHECKPOINTS).glob("*"))


def _check_same(before: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    differing = [name for name in before if name not in RESUMABLE and before[name] != now[name]]
    if differing:
        name = differing[0]
        raise TrainingError(
            f"{path} was started with {name} = {before[name]!r}, now it is {now[name]!r}: a run goes on as "
            f"it began (only {', '.join(sorted(RESUMABLE))} may change); else choose another folder"
        )


def anchored(recipe: Recipe) -> Recipe:
    """The recipe with whole paths, so that its run can go on from any folder."""
    model = replace(recipe.model, checkpoint=_whole(recipe.model.checkpoint))
    if model.adapter is not None:
        model = replace(model, adapter=_whole(model.adapter))
    if model.contrastive is not None:
        language = _whole(model.contrastive.language)
        model = replace(model, contrastive=replace(model.contrastive, language=language))
    evaluation = recipe.evaluation
    if evaluation.data is not None:
        evaluation = replace(evaluation, data=_anchored(evaluation.data))
    return replace(recipe, model=model, data=_anchored(recipe.data), evaluation=evaluation)


def _anchored(data: DataSpec) -> DataSpec:
    return data if data.meta is None else replace(data, meta=_whole(data.meta))


def _whole(name: str) -> str:
    """A name of the zoo and a pattern stay as they are."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name
