"""A recipe carried out: model, data, optimiser and loop joined, and what a run leaves in its folder.

    recipe.json          the resolved recipe
    log.jsonl            a row every few steps, the measurements, how the run ended (of others in rank-N/)
    bad_samples.jsonl    records that could not be used, with the reason
    checkpoints/         the last states, to continue from
    model/ or adapter/   the result: a checkpoint of its own, or adapters in PEFT's format; of a dual encoder
                         with adapters both, the checkpoint with the adapters merged in
    deltas/              beside the model/ of a dual encoder with adapters: what was trained, alone
    report.md, loss.png  what happened

Called again with `resume`, a run goes on where its last complete checkpoint left it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from internvl.data.bad_samples import FIRST, BadSamplesLog, read_kinds
from internvl.data.feed import Feed, Step
from internvl.data.meta import DataSet, open_data
from internvl.data.spec import DataSpec
from internvl.errors import InternVLError
from internvl.training.build import Built, build, narrow_frozen
from internvl.training.build_pairs import BuiltPairs, build_pairs
from internvl.training.ema import EMA
from internvl.training.evaluate import Evaluator, best_of
from internvl.training.evaluate_pairs import PairEvaluator, modes_of
from internvl.training.features import FeatureCache
from internvl.training.folder import BAD, CHECKPOINTS, anchored, claim
from internvl.training.lock import held
from internvl.training.log import Log
from internvl.training.loop import Job, Objected, train
from internvl.training.loss import Objective
from internvl.training.objective_spec import Preference, SelfCritical
from internvl.training.objectives import make_objective
from internvl.training.optim import freeze, make_optimizer
from internvl.training.precision import for_device
from internvl.training.progress import Progress
from internvl.training.recipe import Recipe
from internvl.training.recipe_data import (
    check_unchanged,
    count_steps,
    data_facts,
    make_examples,
    make_pairs,
    make_reader,
    open_mixture,
)
from internvl.training.recompute import recompute
from internvl.training.reference import Reference
from internvl.training.report import FAILED, write_report
from internvl.training.results import check_result, result_name, write_result
from internvl.training.saves import Saves
from internvl.training.self_critical import learn_from_answers
from internvl.training.world import World, distribute, open_world, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended ("finished", "interrupted", "no better"), what it made, unless interrupted, and how
    many records could not be used."""

    reason: str
    step: int
    result: Path | None
    num_bad: int


def run(recipe: Recipe, out: Path, *, resume: bool = False, device: str = "cpu") -> Outcome:
    """Trains what the recipe says and writes the result to `out`.

    The device decides whether it is computed in bfloat16 (`precision`); the folder keeps the recipe as given.
    Raises TrainingError for a folder that is in use or holds another run, a recipe that cannot start, or a
    run that must stop; InputError and CheckpointError for data and weights that cannot be read.
    """
    recipe, world = anchored(recipe), open_world(device)
    try:
        with held(out, world):
            claim(recipe, out, world, resume=resume)
            return _Run(for_device(recipe, world.device), out, world).finish()
    finally:
        world.close()


class _Run:
    """The parts of one run on one process."""

    def __init__(self, recipe: Recipe, out: Path, world: World) -> None:
        self.recipe, self.out, self.world = recipe, out, world
        make = build_pairs if recipe.has_pairs else build
        self.built = make(recipe.model, recipe.seed)
        self.model = self.built.model.to(world.device)
        freeze(self.model, recipe.params)
        check_result(self.built, recipe)
        narrow_frozen(self.model, recipe.model.frozen_dtype)
        self.reference = self._reference()
        recompute(self.model, recipe.execution.recompute)
        self.mixture = open_mixture(recipe.data, recipe.seed)
        self.steps = count_steps(recipe, len(self.mixture))
        self.data_facts = data_facts(self.mixture, self.steps)
        self.objective = self._objective()
        self.module = distribute(Objected(self.model, self.objective), recipe.execution.parallel, world)
        self.optimizer = make_optimizer(self.model, recipe.params)
        self.ema = None if recipe.ema is None else EMA(self.model, recipe.ema)
        self.saves = Saves(out / CHECKPOINTS, world, keep=recipe.saving.keep)
        self.best = best_of(recipe.evaluation)
        self.bad = BadSamplesLog(out / BAD, recipe.data.bad_samples)
        self.cache = self._feature_cache()

    def _reference(self) -> nn.Module | None:
        """The model as it starts, where preferences are measured against a copy; sharded as the model is."""
        objective, parallel = self.recipe.objective, self.recipe.execution.parallel
        wants_copy = isinstance(objective, Preference) and objective.reference == "copy"
        if not wants_copy or isinstance(self.built, BuiltPairs):
            return None
        copy = Reference(self.built.model)
        return distribute(copy, parallel, self.world) if parallel == "fsdp" else copy

    def _objective(self) -> Objective:
        spec, built = self.recipe.objective, self.built
        if isinstance(spec, SelfCritical) and isinstance(built, Built):
            examples = make_examples(built, self.recipe.data, spec)
            return learn_from_answers(spec, built.processor, self.mixture.datasets, examples)
        return make_objective(spec, world=self.world, reference=self.reference)

    def _feature_cache(self) -> FeatureCache | None:
        if not self.recipe.execution.cache_features:
            return None
        augmented = [dataset.name for dataset in self.mixture.datasets if dataset.augment]
        return FeatureCache(self.model, self.out / "features", augmented=augmented)

    def finish(self) -> Outcome:
        facts = self._resume()
        feed = self._feed(int(facts.get("position", 0)))
        log = self._log()
        if facts:
            log.write(step=facts["step"], event="resumed")
        try:
            with Progress(self.steps, int(facts.get("step", 0))) as progress:
                job = self._job(facts, feed, log, progress)
                reason = self._train(job)
        finally:
            feed.close()
            self.saves.close()
            log.close()
        result = self._export() if reason != "interrupted" else None
        self._report(job, reason)
        return Outcome(reason=reason, step=job.done, result=result, num_bad=len(read_kinds(self.out / BAD)))

    def _train(self, job: Job) -> str:
        """Why the run ended. A process that fails leaves its reason first: the main one in the report, others
        in their logs, where a report finds it."""
        try:
            reason = train(job)
            if reason != "interrupted":
                self._counted_bad().judge()
        except Exception as error:
            failure = f"{FAILED} {str(error) or repr(error)}"
            with suppress(InternVLError, OSError):  # the failure is what is to be told
                if not self.world.is_main:
                    job.log.write(step=job.done, event=failure)
                self._report(job, failure)
            raise
        return reason

    def _report(self, job: Job, reason: str) -> None:
        if self.world.is_main:
            write_report(self.out, self.recipe, {"reason": reason, "step": job.done})

    def _take(self, feed: Feed[Any, Any]) -> Step[Any]:
        """The next step; not after an epoch of a small set in which too much was bad."""
        if len(self.mixture) <= self.bad.num_seen < FIRST:
            self._counted_bad().judge()
        return feed.take()

    def _counted_bad(self) -> BadSamplesLog:
        """With the exact number, on every process: it is the mean of what each supposed."""
        self.bad.num_bad = int(self.world.sum(torch.tensor(self.bad.num_bad))) // self.world.size
        return self.bad

    def _log(self) -> Log:
        """The run's own on the main process; the others keep theirs beside it."""
        if not self.world.is_main:
            return Log(self.out / f"rank-{self.world.rank}")
        return Log(self.out, tensorboard=self.recipe.tensorboard, wandb=self.recipe.wandb)

    def _resume(self) -> dict[str, Any]:
        """What the last complete checkpoint says, its tensors put in place; nothing for a new run."""
        path = self.saves.latest()
        if path is None:
            self.saves.refuse_damaged()
            return {}
        facts = self.saves.load(path, self.model, self.optimizer, self.ema)
        check_unchanged(facts.get("data", self.data_facts), self.data_facts)
        self.best.restore(facts["best"])
        if self.best.step is not None:
            self.saves.keep_best(self.best.step)  # a run that was killed has not said so yet
        self.bad.restore(facts.get("bad", self.bad.state()))
        if hasattr(self.objective, "restore"):
            self.objective.restore(facts["objective"])
        return facts

    def _facts(self) -> dict[str, Any]:
        objective = self.objective.state() if hasattr(self.objective, "state") else {}
        return {"objective": objective, "data": self.data_facts, "bad": self._counted_bad().state()}

    def _feed(self, position: int) -> Feed[Any, Any]:
        data, batching = self.recipe.data, self.recipe.execution
        examples, pack = make_reader(self.built, data, self.recipe.objective)
        return Feed(
            self.mixture,
            examples,
            data,
            pack,
            seed=self.recipe.seed,
            bad=self.bad,
            world=self.world.size,
            rank=self.world.rank,
            accumulate=batching.accumulate,
            position=position,
            prepare=None if self.cache is None else self.cache.features,
        )

    def _job(self, facts: dict[str, Any], feed: Feed[Any, Any], log: Log, progress: Progress) -> Job:
        return Job(
            recipe=self.recipe,
            steps=self.steps,
            model=self.model,
            module=self.module,
            optimizer=self.optimizer,
            take=partial(self._take, feed),
            world=self.world,
            saves=self.saves,
            log=log,
            progress=progress,
            best=self.best,
            facts=self._facts,
            evaluate=self._evaluator(),
            ema=self.ema,
            done=int(facts.get("step", 0)),
            position=int(facts.get("position", 0)),
            skipped=int(facts.get("skipped", 0)),
            measured=int(facts.get("measured", 0)),
        )

    def _evaluator(self) -> Callable[[], dict[str, float]] | None:
        settings = self.recipe.evaluation
        if settings.data is None or settings.data.meta is None:
            return None
        evaluator = self._measuring(settings.data, open_data(settings.data.meta))
        bad = BadSamplesLog(self.out / BAD, settings.data.bad_samples)
        bad.add(evaluator.bad, is_written=self.world.is_main)

        def measure() -> dict[str, float]:
            """Processes have different numbers of records, so no module may be sharded meanwhile."""
            with nullcontext() if self.reference is None else whole(self.reference):
                return evaluator.evaluate()

        return measure

    def _measuring(self, data: DataSpec, datasets: Sequence[DataSet]) -> Evaluator | PairEvaluator:
        recipe, built = self.recipe, self.built
        options: dict[str, Any] = {
            "world": self.world,
            "prepare": None if self.cache is None else self.cache.features,
            "autocast": recipe.execution.autocast,
        }
        if isinstance(built, BuiltPairs):
            pairs, modes = make_pairs(built, data), modes_of(recipe.objective)
            return PairEvaluator(
                built.model, datasets, pairs, recipe.evaluation, self.objective, modes=modes, **options
            )
        examples = make_examples(built, data, recipe.objective)
        return Evaluator(
            built.model, built.processor, datasets, examples, recipe.evaluation, self.objective, **options
        )

    def _take_best(self) -> None:
        """Puts the weights of the best measurement in place of the last ones, where the recipe wants them."""
        if self.recipe.evaluation.result == "best" and (best := self.saves.best()) is not None:
            self.saves.load(best, self.model, self.optimizer, self.ema)

    def _export(self) -> Path:
        """Adapters, with whatever else was trained beside them, or the whole model; averaged weights if the
        recipe asks for them."""
        self._take_best()
        with self.ema.swapped() if self.ema is not None else nullcontext(), whole(self.module):
            if self.world.is_main:
                write_result(self.built, self.recipe, self.out)
        self.world.barrier()
        return self.out / result_name(self.built)
