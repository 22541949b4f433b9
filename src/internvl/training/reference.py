"""Log-probabilities of answers, and the reference model of preference optimisation: where its own come from.

They are stored in the records, or computed by the trained model with its adapters off, or by a frozen copy of
what it was. Shape letters: A trained tokens, B branches, S slots, D text width.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from internvl.adapt.lora import adapters_off
from internvl.data.bad_samples import BROKEN
from internvl.data.batch import Batch, pack
from internvl.data.example import Example
from internvl.data.meta import DataSet
from internvl.data.places import Maker
from internvl.errors import InputError, TrainingError
from internvl.models.vlm import VLM
from internvl.training.cross_entropy import cross_entropy
from internvl.training.forward import trained_states

STORED = ("ref_chosen_logps", "ref_rejected_logps")
"""Keys of a record's stored log-probabilities."""


@torch.no_grad()
def log_probs(model: VLM, hidden_AD: Tensor, batch: Batch) -> Tensor:
    """Summed log-probability of the trained tokens of every branch, (B,), from their hidden states."""
    weights_A = torch.ones(len(hidden_AD), device=hidden_AD.device)
    tokens_A = cross_entropy(hidden_AD, model.llm.head, batch.targets_A, weights_A).tokens_A
    return tokens_A.new_zeros(batch.num_branches).index_add_(0, batch.branches_A, -tokens_A)


@torch.no_grad()
def quiet_log_probs(model: VLM, batch: Batch, vision_SD: Tensor | None = None) -> Tensor:
    """The same of a model at rest, (B,): no dropout, no stochastic depth, no gradient."""
    with _at_rest(model):
        return log_probs(model, trained_states(model, batch, vision_SD), batch)


class Reference(nn.Module):
    """A frozen copy of a model as it is now. Make it before training or resuming; shard it like the model."""

    def __init__(self, model: VLM) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    def forward(self, batch: Batch) -> Tensor:
        """Summed log-probabilities of the branches, (B,)."""
        return quiet_log_probs(self.model, batch)


def stored(batch: Batch) -> Tensor:
    """The log-probabilities that came with the records, (B,).

    Raises:
        TrainingError: an answer has none.
    """
    lacking = batch.reference_B.isnan()
    if lacking.any():
        owners = [key for key, (_, branches) in zip(batch.keys, batch.groups, strict=True) for _ in branches]
        raise TrainingError(
            f"{owners[int(lacking.int().argmax())]}: no log-probabilities of the reference model "
            f"({int(lacking.sum())} of {len(lacking)} answers lack them). Store them first "
            f"(training.reference.store), or set objective.reference to adapters_off or copy"
        )
    return batch.reference_B


def without_adapters(model: VLM, batch: Batch, vision_SD: Tensor) -> Tensor:
    """Those of the model without its adapters, (B,).

    `vision_SD` are the pictures as the trained model sees them; they serve again where nothing is trained
    that would change them.

    Raises:
        TrainingError: something else than adapters is trained, so that switching them off is no reference.
    """
    check_only_adapters_learn(model)
    vision = (*model.vit.parameters(), *model.projector.parameters())
    changes = any(p.requires_grad for p in vision) or model.config.vision.drop_path > 0
    with adapters_off(model):
        return quiet_log_probs(model, batch, None if changes else vision_SD.detach())


def check_only_adapters_learn(model: VLM) -> None:
    """Raises TrainingError naming the first trained parameter outside of the adapters."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not name.rpartition(".")[2].startswith("lora_"):
            raise TrainingError(
                f"objective.reference is adapters_off, but {name} is trained too: without the adapters the "
                "model is not what it was. Train adapters only, or choose stored or copy"
            )


def store(model: VLM, examples: Maker[Example], dataset: DataSet, out: Path) -> dict[str, str]:
    """Writes the rows of a data set as JSON lines, with the log-probabilities of their two answers under
    `model`.

    Paths in rows still start from `dataset.root`. A row that makes no pair is written as it is, so a run
    meets and reports it, and one that cannot be read is left out; both are returned, the reason by the
    place. The file appears whole or not at all.

    Raises:
        TrainingError: a log-probability that is not finite, or a row that JSON cannot hold.
    """
    dataset, partial = replace(dataset, augment=False), out.with_name(f"{out.name}.partial")
    wrong: dict[str, str] = {}
    # Half a character in a text becomes JSON's own escape.
    with partial.open("w", encoding="utf-8", errors="backslashreplace") as lines:
        for index in range(len(dataset.source)):
            where, row = dataset.source.where(index), dict[str, Any]()
            try:
                row |= dataset.source.row(index)
                row |= _stored(model, examples.example(row, dataset, seed=0, key=where))
            except BROKEN as error:
                wrong[where] = str(error)
            if row:
                lines.write(_line(row, where))
    partial.replace(out)
    return wrong


def _stored(model: VLM, pair: Example) -> dict[str, float]:
    if not pair.is_preference:
        raise InputError(f"{len(pair.branches)} answers on record: a preference has chosen and rejected")
    batch = pack([pair], model.config.tiling.tile_size).to(model.llm.embed.weight.device)
    values = quiet_log_probs(model, batch).tolist()
    if not all(map(math.isfinite, values)):
        raise TrainingError(
            f"{pair.key}: log-probabilities {values} are not finite; load the model in float32"
        )
    return dict(zip(STORED, values, strict=True))


def _line(row: Mapping[str, Any], where: str) -> str:
    try:
        return f"{json.dumps(row, ensure_ascii=False)}\n"
    except TypeError as error:
        raise TrainingError(f"{where}: {error}: the pictures must be files, not bytes in the rows") from error


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; afterwards every module is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
