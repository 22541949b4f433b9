"""`internvl train`: a recipe carried out, or looked at first.

The recipe decides everything that is learnt; options are short for settings of it. Imports what trains only
when something is to be trained, so that `--help` and `--list` are quick.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from internvl.cli import output
from internvl.cli.arguments import File, Flag, Whole, Word, parse, use_threads
from internvl.errors import InputError
from internvl.recipes import catalog
from internvl.training import recipe_file
from internvl.training.recipe import Recipe

RUNS = Path("runs")
SAVED = "recipe.json"
INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Train a model by a recipe.

    A recipe says what is trained, on what, and how; --set changes any part of it, e.g.
    `--set schedule.warmup=100 --set params.0.1.lr=1e-4`. The resolved recipe is saved with the run, next to
    its log, its checkpoints, its report and its result. Ctrl-C and SIGTERM save and end the run (exit status
    130); --resume continues it. Several processes: `torchrun --nproc-per-node 8 -m internvl train ...`.
    """

    recipe: Annotated[Positional[str | None], arg(metavar="RECIPE", help_behavior_hint="")] = None
    """A name from --list, a saved recipe (recipe.json), or the folder of a run."""
    data: File = None
    """A meta JSON, or one file or folder of records (data.meta of the recipe)."""
    model: Word = None
    """A directory, or a name of the zoo (model.checkpoint of the recipe)."""
    set: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME=VALUE", help_behavior_hint="")] = ()
    """A change to the recipe; may be repeated."""
    out: File = None
    """The folder of the run; runs/NAME by default."""
    resume: Flag = False
    """Go on from the last complete checkpoint in the folder; where there is none, from the start."""
    dry_run: Flag = False
    """Only tell parameters, memory and time."""
    list: Flag = False
    """Only tell which recipes there are."""
    device: str = "cpu"
    """cpu, cuda."""
    threads: Whole = None
    """Processor threads; torch's own choice by default."""
    json: Flag = False
    """Print one JSON document: how the run ended, or what --list or --dry-run tells."""


def run(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = parse(Options, words, "train")
    if options.list:
        return _list(options)
    if options.recipe is None:
        raise InputError("name a recipe: `internvl train --list` shows them, e.g. `internvl train lora`")
    recipe, folder = resolve(options.recipe, options)
    if options.threads is not None:
        use_threads(options.threads)
    return _estimate(options, recipe) if options.dry_run else _train(options, recipe, folder)


def resolve(name: str, options: Options) -> tuple[Recipe, Path]:
    """The recipe with the options' changes, and the folder of its run."""
    path = Path(name).expanduser()
    if path.is_dir():
        recipe, folder = recipe_file.read(path / SAVED), path
    elif path.suffix == ".json":
        recipe = recipe_file.read(path)
        folder = RUNS / recipe.name
    elif path.is_file():
        raise InputError(f"{name} is no recipe (.json); data go in --data, e.g. `train lora --data {name}`")
    elif len(path.parts) > 1:
        raise InputError(f"no run in {name}: there is no such folder")
    else:
        recipe = catalog.find(name)
        folder = RUNS / recipe.name
    short = (("data.meta", options.data), ("model.checkpoint", options.model))
    settings = [f"{field}={value}" for field, value in short if value is not None]
    changed = recipe_file.override(recipe, [*settings, *options.set])
    return changed, folder if options.out is None else Path(options.out)


def _list(options: Options) -> int:
    made = [(name, _first_line(name)) for name in catalog.names()]
    if options.json:
        output.write_json({"recipes": [{"name": name, "about": about} for name, about in made]})
    else:
        output.write_table("recipes", ("name", "about"), made)
    return 0


def _first_line(name: str) -> str:
    """What a recipe's function says of itself."""
    make = catalog.RECIPES[name]
    text = getattr(make, "func", make).__doc__ or ""
    return " ".join(text.split("\n\n")[0].split())


def _estimate(options: Options, recipe: Recipe) -> int:
    from internvl.training.dry_run import dry_run
    from internvl.training.estimate import describe

    with output.status("estimating"):
        made = dry_run(recipe, device=options.device)
    if options.json:
        output.write_json({**asdict(made), "memory": made.memory, "recipe": recipe_file.dump(recipe)})
    else:
        output.write(describe(made))
    return 0


def _train(options: Options, recipe: Recipe, folder: Path) -> int:
    import torch

    from internvl.training.precision import WIDENED, for_device
    from internvl.training.run import run as carry_out

    is_main = os.environ.get("RANK", "0") == "0"  # of torchrun's processes one tells how it goes
    if is_main and options.device == "cpu" and for_device(recipe, torch.device("cpu")) != recipe:
        output.note(WIDENED)
    outcome = carry_out(recipe, folder, resume=options.resume, device=options.device)
    if is_main:
        result = None if outcome.result is None else str(outcome.result)
        told = {"reason": outcome.reason, "step": outcome.step, "run": str(folder), "result": result}
        if outcome.num_bad:
            output.note(f"{outcome.num_bad} records could not be used, see {folder / 'bad_samples.jsonl'}")
        if options.json:
            output.write_json(told)
        else:
            output.note(f"{outcome.reason} after {outcome.step} steps; report: {folder / 'report.md'}")
            output.write(f"{result or folder}\n")
    if outcome.reason == "interrupted":
        output.note(f"go on with: internvl train {shlex.quote(str(folder))} --resume")
        return INTERRUPTED
    return 0
