"""The folder of a run: what its files are called, and that it belongs to one recipe.

Knows nothing of what is written there (see `training.run`).
"""

from __future__ import annotations

from collections.abc import Iterator
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
RESUMABLE: tuple[str, ...] = (
    "data.bad_samples.limit",
    "data.read_ahead",
    "data.workers",
    "evaluation",
    "execution",
    "log_every",
    "saving",
    "tensorboard",
    "wandb",
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
            for stale in (out / BAD, *out.glob(f"rank-*/{LOG}")):
                stale.unlink(missing_ok=True)
        recipe_file.write(path, recipe)
    world.barrier()


def _has_begun(out: Path) -> bool:
    """Whether a run has written something of its own: a row of its log, or a checkpoint."""
    log = out / LOG
    return (log.is_file() and log.stat().st_size > 0) or any((out / CHECKPOINTS).glob("*"))


def _check_same(before: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    for name, old, new in _changes(before, now):
        raise TrainingError(
            f"{path} was started with {name} = {old!r}, now it is {new!r}: a run goes on as it began (only "
            f"{', '.join(RESUMABLE)} may change); else choose another folder"
        )


def _changes(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(name, before, now) of every field that may not differ and does, named as `--set` names it."""
    if name in RESUMABLE or before == now:
        return
    keys = _keys(before)
    if keys and keys == _keys(now):
        for key in keys:
            yield from _changes(before[key], now[key], f"{name}.{key}".removeprefix("."))
    else:
        yield name, before, now


def _keys(value: Any) -> list[Any]:
    """Names or places of what is inside; none of a plain value."""
    return list(range(len(value)) if isinstance(value, list) else value if isinstance(value, dict) else ())


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
