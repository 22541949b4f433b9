"""Measurements of a dual encoder on held-out pairs while a run goes on.

The loss is the run's own objective; "recall" is how often the right picture of a caption, and a right caption
of a picture, is among the first 1, 5 and 10 of those that are measured; rows of one picture are one. Every
process takes its share and ends with the same numbers. Knows no optimiser and no files of its own. Shape
letters: I pictures, T texts, P patches and class token, C vision width, E width of the common space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor

from internvl.data.bad_samples import BROKEN, BadSample, key_of
from internvl.data.meta import DataSet
from internvl.data.pair_examples import Held, PairExamples
from internvl.data.pairs import PairBatch, PairExample, pair
from internvl.errors import InputError
from internvl.evaluation.retrieval import recall
from internvl.models.dual_encoder import DualEncoder
from internvl.training.dual_forward import embed_texts, image_features
from internvl.training.evaluate import spread
from internvl.training.loss import Objective
from internvl.training.objective_spec import Contrastive, ObjectiveSpec
from internvl.training.precision import autocast
from internvl.training.recipe import Evaluation
from internvl.training.world import World, whole

PAIRS_AT_ONCE = 64
"""Of which each is compared with the others for the loss: it grows with their number."""

Mode = Literal["C", "G"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """The usable rows of a data set that are measured, and their pictures and captions."""

    dataset: DataSet
    rows: tuple[int, ...]
    held: tuple[Held, ...]

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for one in self.held for name in one.captions))

    @property
    def pictures(self) -> dict[int, int]:
        """The place of a row with each picture, by the picture's id, in the order they first come."""
        return {one.image_id: place for place, one in enumerate(self.held)}


class PairEvaluator:
    """Measures `model` on at most `settings.examples` records of each data set, evenly spread over it.

    `modes` are the embeddings of pictures that are measured; the last one's mean is `val_recall`. The records
    are read once when it is made: `bad` are those that cannot be used. `prepare` is applied to every batch
    (cached features); `autocast` as in training. Raises InputError for a data set of which no record can be
    used.
    """

    def __init__(
        self,
        model: DualEncoder,
        datasets: Sequence[DataSet],
        examples: PairExamples,
        settings: Evaluation,
        objective: Objective,
        *,
        modes: Sequence[Mode] = ("C",),
        world: World | None = None,
        prepare: Callable[[PairBatch], PairBatch] | None = None,
        autocast: str | None = None,
    ) -> None:
        self.model, self.examples, self.settings, self.objective = model, examples, settings, objective
        self.modes, self.world, self.prepare = tuple(modes), world or World(), prepare
        self.autocast = autocast
        self.bad: list[BadSample] = []
        self.sets = tuple(self._held(replace(dataset, augment=False)) for dataset in datasets)

    def evaluate(self) -> dict[str, float]:
        """`val_loss` and, where the settings ask for it, `val_recall`, with all its shares by mode, data set
        and language, such as `val_t2i_r10/C/flickr/en`. The model is to be in evaluation mode."""
        row: dict[str, float] = {}
        with torch.no_grad(), whole(self.model):
            losses = {held.dataset.name: self._loss(held) for held in self.sets}
            row["val_loss"] = fmean(losses.values())
            row |= {f"val_loss/{name}": value for name, value in losses.items()}
            if self.settings.metric == "recall":
                row |= self._recalls()
        return row

    def _held(self, dataset: DataSet) -> _Held:
        rows, read = [], []
        for row in spread(dataset.size, self.settings.examples):
            try:
                self._example(dataset, row)
                held = self.examples.read(dataset.source.row(row), dataset)
                for text in (text for texts in held.captions.values() for text in texts):
                    self.examples.texts.ids(text)
            except BROKEN as error:
                self.bad.append(BadSample.of(dataset, row, row, error))
                continue
            rows.append(row)
            read.append(held)
        if not rows:
            reason = self.bad[-1].reason if self.bad else "evaluation.examples is 0"
            raise InputError(f"no record of {dataset.name} can be used to evaluate: {reason}")
        return _Held(dataset=dataset, rows=tuple(rows), held=tuple(read))

    def _example(self, dataset: DataSet, row: int) -> PairExample:
        return self.examples.example(dataset.source.row(row), dataset, seed=0, key=key_of(dataset, row))

    def _mine(self, count: int) -> Iterator[range]:
        """Places of this process's share of `count`: whole groups, which are the same for any number of
        processes."""
        step = self.world.size * PAIRS_AT_ONCE
        for first in range(self.world.rank * PAIRS_AT_ONCE, count, step):
            yield range(first, min(first + PAIRS_AT_ONCE, count))

    def _batch(self, held: _Held, places: Sequence[int]) -> PairBatch:
        batch = pair([self._example(held.dataset, held.rows[place]) for place in places])
        return (self.prepare(batch) if self.prepare else batch).to(self.world.device)

    def _loss(self, held: _Held) -> float:
        sum_2 = torch.zeros(2, dtype=torch.float64)
        for places in self._mine(len(held.rows)):
            with autocast(self.autocast, self.world.device):
                loss = self.objective(self.model, self._batch(held, places))
            sum_2 += torch.tensor([float(loss.total), loss.weight], dtype=torch.float64)
        total, weight = self.world.sum(sum_2).tolist()
        return float(total / weight)

    def _recalls(self) -> dict[str, float]:
        shares: dict[str, float] = {}
        means: list[float] = []
        for held in self.sets:
            images = self._images(held)
            for language in held.languages:
                texts_TE, image_of_text = self._texts(held, language)
                for mode in self.modes:
                    found = recall(images[mode], texts_TE, image_of_text)
                    where = f"{mode}/{held.dataset.name}/{language}"
                    shares |= _named("val_t2i", found.text_to_image, where)
                    shares |= _named("val_i2t", found.image_to_text, where)
                    means += [found.mean] if mode == self.modes[-1] else []
        return {"val_recall": fmean(means), **shares}

    def _images(self, held: _Held) -> dict[Mode, Tensor]:
        """Embeddings (I, E) in each mode. Processes add up tables that hold 0 but for their own rows."""
        rows, embed_dim = tuple(held.pictures.values()), self.model.config.embed_dim
        tables = {mode: torch.zeros(len(rows), embed_dim) for mode in self.modes}
        for places in self._mine(len(rows)):
            batch = self._batch(held, [rows[place] for place in places])
            with autocast(self.autocast, self.world.device):
                features_BPC = image_features(self.model, batch.tiles_B3HW, batch.features_BPC)
                for mode, table_IE in tables.items():
                    images_BE = self.model.pool_images(features_BPC, generative=mode == "G")
                    table_IE[list(places)] = images_BE.float().cpu()
        return {mode: self._summed(table_IE) for mode, table_IE in tables.items()}

    def _texts(self, held: _Held, language: str) -> tuple[Tensor, list[int]]:
        """Embeddings (T, E) of all captions in a language, and the number of each one's picture."""
        number_of = {image_id: number for number, image_id in enumerate(held.pictures)}
        numbered = [
            (number_of[one.image_id], text) for one in held.held for text in one.captions.get(language, ())
        ]
        table_TE = torch.zeros(len(numbered), self.model.config.embed_dim)
        for places in self._mine(len(numbered)):
            ids = [self.examples.texts.ids(numbered[place][1]) for place in places]
            with autocast(self.autocast, self.world.device):
                table_TE[list(places)] = embed_texts(self.model, ids).float().cpu()
        return self._summed(table_TE), [number for number, _ in numbered]

    def _summed(self, table: Tensor) -> Tensor:
        return self.world.sum(table.to(self.world.device)).cpu()


def modes_of(objective: ObjectiveSpec) -> tuple[Mode, ...]:
    """The embeddings of pictures that an objective trains, the one that it is for last."""
    if isinstance(objective, Contrastive) and objective.mode == "C":
        return ("C",)
    return ("C", "G")


def _named(name: str, shares: Mapping[int, float], where: str) -> dict[str, float]:
    return {f"{name}_r{k}/{where}": share for k, share in shares.items()}
