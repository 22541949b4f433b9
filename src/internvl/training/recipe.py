"""What a training run is: a frozen value, written down by a function of `recipes/`.

Knows no model, no tensors and no files; `training.run` carries it out. Every field can be set from the
command line (`--set schedule.warmup=100`) and the resolved value is saved with the run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from internvl.adapt.lora import LoRA
from internvl.data.spec import DataSpec
from internvl.errors import RecipeError
from internvl.processing.tiling import MAX_TILES
from internvl.training.contrastive_parts import ContrastiveParts
from internvl.training.objective_spec import (
    Contrastive,
    NextToken,
    ObjectiveSpec,
    SelfCritical,
    Stage2,
    require,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW:
    """Settings of the parameters that a pattern names.

    `layer_decay` below 1 multiplies the rate of layer i of n (from 1) by `layer_decay ** (n + 1 - i)`, so
    that early layers move less; embeddings count as layer 0. Biases and norms are not decayed.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        require(self.lr > 0, "a learning rate (lr) is above 0", self.lr)
        require(all(0 <= beta < 1 for beta in self.betas), "betas lie in [0, 1)", *self.betas)
        require(self.eps > 0, "eps is above 0", self.eps)
        require(self.weight_decay >= 0, "weight_decay is not negative", self.weight_decay)
        require(0 < self.layer_decay <= 1, "layer_decay lies in (0, 1]", self.layer_decay)


Rule = tuple[str, AdamW | None]
"""A regular expression over canonical parameter names, and how to train what it names; None freezes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Where the weights come from; what is not None overrides the checkpoint's configuration.

    `checkpoint` is a path or a name of the zoo. `dtype` is that of the trained weights, and of the frozen
    ones unless `frozen_dtype` says otherwise (which needs autocast). `fresh_projector` starts it anew.
    """

    checkpoint: str = "nano"
    template: str | None = None
    select_layer: int | None = None
    drop_path: float | None = None
    max_tiles: int | None = None
    image_size: int | None = None
    """Pixels a side of a dual encoder's pictures."""
    fresh_projector: bool = False
    contrastive: ContrastiveParts | None = None
    """Begins a dual encoder from the checkpoint's tower; None for one that is a checkpoint already."""
    dtype: str = "float32"
    frozen_dtype: str | None = None
    adapters: tuple[tuple[str, LoRA], ...] = ()
    """Patterns over the names of linear modules, e.g. `llm\\.layers\\..*`; the first match decides."""
    adapter: str | None = None
    """A directory of adapters, of the kind that `adapters` says, that training goes on with; else they are
    new."""
    int8: tuple[str, ...] = ()
    """Patterns over linear modules whose frozen weights are kept in int8 under their adapters (QLoRA)."""

    def __post_init__(self) -> None:
        if self.drop_path is not None:
            require(0 <= self.drop_path < 1, "drop_path lies in [0, 1)", self.drop_path)
        if self.max_tiles is not None:
            require(1 <= self.max_tiles <= MAX_TILES, f"max_tiles is from 1 to {MAX_TILES}", self.max_tiles)
        if self.adapter is not None and not self.adapters:
            raise RecipeError("model.adapter goes on with adapters: say which in model.adapters")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Share of the peak learning rate over the run.

    `warmup` (linear) counts steps from 1 upwards and is a share of the run below 1. "wsd" stays at the peak
    and comes down linearly to `final` over the last `decay` share of the run; "cosine" comes down all the way
    after warm-up.
    """

    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup: float = 0.0
    decay: float = 0.1
    final: float = 0.0

    def __post_init__(self) -> None:
        require(self.warmup >= 0, "warmup is a share below 1, or a number of steps", self.warmup)
        require(0 <= self.decay <= 1, "decay is a share of the run", self.decay)
        require(0 <= self.final <= 1, "final is a share of the peak rate", self.final)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What is measured every `every` steps, on at most `examples` records of each data set of `data`.

    `metric` chooses the best checkpoint: "loss", a generated one ("cider", "exact"), or of pairs "recall",
    the mean of R@1, 5 and 10 both ways; the run stops after `patience` measurements without a better one.
    `result`: which weights the run hands over, the last or those of the best measurement.
    """

    data: DataSpec | None = None
    every: int = 500
    examples: int = 200
    metric: Literal["loss", "cider", "exact", "recall"] = "loss"
    max_new_tokens: int = 64
    patience: int | None = None
    result: Literal["last", "best"] = "last"


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """A checkpoint every `every` steps; the last `keep` and the best one stay on disk."""

    every: int = 200
    keep: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How a step is computed; changes speed and memory, not what is learnt (beyond rounding).

    `autocast` is the dtype of matrix products, on devices that compute in it (see `precision`). `recompute`:
    patterns over module names whose activations are computed again in the backward pass. `parallel`: "ddp"
    keeps a whole model on every process, "fsdp" shards it (FSDP2); both take part only under `torchrun`.
    `accumulate`: micro-batches of a step and process.
    `cache_features`: a frozen tower's outputs are computed once and kept on disk.
    """

    autocast: Literal["bfloat16"] | None = None
    recompute: tuple[str, ...] = ()
    parallel: Literal["ddp", "fsdp"] = "ddp"
    accumulate: int = 1
    cache_features: bool = False
    non_finite: Literal["stop", "skip"] = "stop"
    non_finite_limit: int = 10
    """Skipped steps after which the run stops all the same."""

    def __post_init__(self) -> None:
        require(self.non_finite_limit >= 0, "non_finite_limit is not negative", self.non_finite_limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A run of `steps` optimiser steps, or of `epochs` over the data. The first rule that matches a
    parameter's whole name decides."""

    name: str
    params: tuple[Rule, ...]
    model: ModelSpec = field(default_factory=ModelSpec)
    data: DataSpec = field(default_factory=DataSpec)
    objective: ObjectiveSpec = field(default_factory=NextToken)
    steps: int | None = None
    epochs: float | None = None
    schedule: Schedule = field(default_factory=Schedule)
    clip_norm: float | None = 1.0
    ema: float | None = None
    """Decay of an exponential moving average of the trained weights, which is then what is exported."""
    seed: int = 0
    log_every: int = 10
    tensorboard: bool = False
    """Write the log for TensorBoard too, if it is installed."""
    wandb: str | None = None
    """The wandb project that is to have the log too."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    saving: Saving = field(default_factory=Saving)
    execution: Execution = field(default_factory=Execution)

    @property
    def has_pairs(self) -> bool:
        """Whether it learns from pairs of a picture and a caption, which is what dual encoders do."""
        return isinstance(self.objective, Contrastive | Stage2)

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise RecipeError(
                f"recipe {self.name}: give steps or epochs, one of them, and none for the other (--set "
                f"epochs=none); got steps = {self.steps}, epochs = {self.epochs}"
            )
        length = self.epochs if self.steps is None else self.steps
        if length is None or length <= 0:
            raise RecipeError(f"recipe {self.name}: the run has no length ({length}), it is above 0")
        if self.clip_norm is not None:
            require(self.clip_norm > 0, f"recipe {self.name}: clip_norm is above 0, or none", self.clip_norm)
        counts = {
            "log_every": self.log_every,
            "evaluation.every": self.evaluation.every,
            "evaluation.examples": self.evaluation.examples,
            "evaluation.max_new_tokens": self.evaluation.max_new_tokens,
            "evaluation.patience": self.evaluation.patience,
            "saving.every": self.saving.every,
            "saving.keep": self.saving.keep,
            "execution.accumulate": self.execution.accumulate,
        }
        if self.evaluation.data is None and self.evaluation.result == "best":
            raise RecipeError(f"recipe {self.name}: evaluation.result=best needs evaluation.data")
        if self.model.frozen_dtype is not None and self.execution.autocast is None:
            raise RecipeError(f"recipe {self.name}: model.frozen_dtype needs execution.autocast")
        if self.model.int8 and not self.model.adapters:
            raise RecipeError(f"recipe {self.name}: model.int8 needs model.adapters, which are what is saved")
        for name, value in counts.items():
            if value is not None and value < 1:
                raise RecipeError(f"recipe {self.name}: {name} counts from 1, got {value}")
        self._check_kind()

    def _check_kind(self) -> None:
        """What only some objectives can have."""
        has_pairs, metric = self.has_pairs, self.evaluation.metric
        if metric != "loss" and has_pairs != (metric == "recall"):
            raise RecipeError(
                f"recipe {self.name}: evaluation.metric {metric} is not measured with {self.objective}"
            )
        if has_pairs and self.execution.accumulate > 1:
            raise RecipeError(
                f"recipe {self.name}: execution.accumulate is {self.execution.accumulate}, but contrastive "
                "pairs are compared within one micro-batch: set it to 1 and lower data.batching.examples, or "
                "start more processes"
            )
        if isinstance(self.objective, SelfCritical) and self.execution.parallel == "fsdp":
            raise RecipeError(
                f"recipe {self.name}: SelfCritical draws captions of different lengths, and sharded weights "
                "are gathered by all processes in step: set execution.parallel=ddp"
            )
        if not has_pairs and self.model.image_size is not None:
            raise RecipeError(
                f"recipe {self.name}: model.image_size is of dual encoders; a chat model cuts tiles of its "
                "own size, and model.max_tiles of them"
            )
        if not has_pairs and self.data.clean_captions:
            raise RecipeError(f"recipe {self.name}: data.clean_captions is for pairs, not for conversations")
