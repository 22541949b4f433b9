"""A base model and its adapters become one checkpoint, verified before it gets its name.

Two things are measured: that the merged model answers a fixed question like the model with adapters,
and that what was written reads back as the very tensors that answered. Tensors that no adapter touches are
copied from the base to the bit. Knows PEFT's files only through `checkpoints.adapters`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from internvl.adapt.lora import merge_adapters
from internvl.checkpoints.adapters import load_adapters
from internvl.checkpoints.layouts import family_called
from internvl.checkpoints.lazy import Held, Lazy, pieces
from internvl.checkpoints.load import Model, load_opened
from internvl.checkpoints.resolve import Checkpoint, open_checkpoint
from internvl.checkpoints.shards import Progress, check_replaceable
from internvl.checkpoints.write import Target, write_checkpoint
from internvl.config import ChatConfig, ContrastiveConfig, TextConfig, VisionConfig
from internvl.errors import ConfigError, WeightsError
from internvl.models.attention import Packed
from internvl.models.dual_encoder import DualEncoder
from internvl.models.vit import VisionTower

TOLERANCE = 1e-3
"""Of merging, before weights are rounded to the dtypes of the files."""

NUM_WORDS = 24
"""Text tokens of the fixed question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """What was merged. `effect` and `error` are shares of the answer's root mean square: how far the adapters
    move the base model's answer, how far merging does in float32, and merging with the weights rounded to the
    dtypes of the base's files."""

    modules: tuple[str, ...]
    effect: float
    error: float
    rounding: float


def merge_checkpoint(
    base: str | Path,
    adapter: str | Path,
    directory: str | Path,
    layout: str | None = None,
    *,
    family: str | None = None,
    max_shard_bytes: float = 5e9,
    template: str | None = None,
    vision_path: str | Path | None = None,
    image_token_id: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MergeReport:
    """Merge adapters in PEFT's format into a copy of their base model.

    `layout` is by default that of the base; the other arguments are those of `save_model`. Needs the model
    in memory, once.

    Raises:
        CheckpointError: something cannot be read, written or built, or the adapters are of another model.
        WeightsError: the merged model does not answer like the model with adapters, or the files do
            not hold what was written. There is then no new directory.
    """
    if Path(directory).is_dir():  # before the minutes that merging takes
        check_replaceable(Path(directory), overwrite=overwrite)
    opened = open_checkpoint(base, template=template, vision_path=vision_path)
    config = opened.description.config
    if isinstance(config, TextConfig):
        raise ConfigError(f"{base} is a language model alone: merge into the whole model")
    # In float32 whatever the files hold: half-precision arithmetic alone moves an answer by a quarter.
    model = load_opened(opened, dtype=reduce(torch.promote_types, _dtypes(opened.tensors), torch.float32))
    plain = answer(model)
    loaded = load_adapters(model, adapter)
    adapted = answer(model)
    merge_adapters(model)
    error = distance(adapted, answer(model))
    changed = [f"{name}.weight" for name in loaded.modules] + list(loaded.replaced)
    merged = _as_stored(model, opened.tensors, changed)
    report = MergeReport(
        modules=loaded.modules,
        effect=distance(adapted, plain),
        error=error,
        rounding=distance(adapted, answer(model)),
    )
    _check(report)
    tensors = {**opened.tensors, **merged}
    target = Target(
        directory=Path(directory),
        layout=layout or _layout_of(opened),
        family=family_called(family) if family else opened.description.origin,
        max_shard_bytes=max_shard_bytes,
        source=Path(base) if Path(base).is_dir() else None,
        image_token_id=image_token_id,
        overwrite=overwrite,
        progress=progress,
        verify=lambda folder: _check_files(folder, tensors, config),
    )
    write_checkpoint(tensors, config, target)
    return report


@torch.no_grad()
def answer(model: Model) -> Tensor:
    """What a model makes of a fixed picture and, unless it is a tower, of fixed words: logits or features.

    Logits are those of the words (T, V); a shift of them all means nothing and is taken out. Of a contrastive
    model, the embeddings of the picture in each mode and of the words, each of length 1.
    """
    config = model.config
    size = config.tiling.tile_size if isinstance(config, ChatConfig) else config.image_size
    reference = next(model.parameters())
    wave = torch.linspace(-2, 2, 3 * size * size).view(1, 3, size, size).sin_().to(reference)
    if isinstance(model, VisionTower):
        features: Tensor = model(wave).float()
        return features
    if isinstance(model, DualEncoder):
        return _embeddings(model, model.vit(wave))
    vision_SD = model.encode_tiles(wave).flatten(0, 1)
    words = _words(model.config.text)
    ids_T = torch.cat((words.new_zeros(len(vision_SD)), words)).to(reference.device)
    pos_T = torch.arange(len(ids_T), device=reference.device)
    x_TD = model.embed(ids_T, pos_T[: len(vision_SD)], vision_SD)
    last_TD = model.llm(x_TD, pos_T, Packed([len(ids_T)], reference.device))[-NUM_WORDS:]
    logits_TV = model.llm.logits(last_TD).float()
    return logits_TV - logits_TV.mean(-1, keepdim=True)


def _embeddings(model: DualEncoder, features_1PC: Tensor) -> Tensor:
    found = [model.pool_images(features_1PC), model.embed_texts([_words(model.config.text).tolist()])]
    if model.config.is_generative:
        found.append(model.pool_images(features_1PC, generative=True))
    return normalize(torch.cat(found).float(), dim=-1)


def _words(config: TextConfig) -> Tensor:
    return torch.linspace(0, config.vocab_size - 1, NUM_WORDS).long()


def distance(expected: Tensor, found: Tensor) -> float:
    """Root mean square of the difference as a share of that of `expected`."""
    return float((found - expected).norm() / expected.norm())


def _dtypes(tensors: Mapping[str, Lazy]) -> set[torch.dtype]:
    return {tensor.dtype for tensor in tensors.values()}


@torch.no_grad()
def _as_stored(model: Model, stored: Mapping[str, Lazy], changed: list[str]) -> dict[str, Lazy]:
    """The changed tensors in the dtypes of the base's files; the model gets what that rounding leaves."""
    rounded: dict[str, Lazy] = {}
    for name in changed:
        parameter = model.get_parameter(name)
        value = parameter.detach().to(stored[name].dtype)
        parameter.copy_(value)
        rounded[name] = Held(value, name)
    return rounded


def _check(report: MergeReport) -> None:
    if not report.error <= TOLERANCE:
        raise WeightsError(
            f"the merged model's answer is {report.error:.2g} off that of the model with adapters (at most "
            f"{TOLERANCE:g}; the adapters move it by {report.effect:.2g}): nothing was written"
        )
    if report.rounding >= report.effect > 0:
        raise WeightsError(
            f"the base's dtype swallows the adapters: rounding moves the answer by {report.rounding:.2g}, "
            f"they by {report.effect:.2g}; merge into a float32 copy of the base. Nothing was written"
        )


def _check_files(
    folder: Path, tensors: Mapping[str, Lazy], config: ChatConfig | ContrastiveConfig | VisionConfig
) -> None:
    """The files hold the tensors, to the bit."""
    template = config.template if isinstance(config, ChatConfig) else None
    found = open_checkpoint(folder, template=template).tensors
    for name, tensor in tensors.items():
        if name not in found or found[name].shape != tensor.shape or not _same(found[name], tensor):
            raise WeightsError(
                f"{name} did not come back from the files as it was written: is the disk full?"
            )


def _same(one: Lazy, other: Lazy) -> bool:
    for start, stop in pieces(one, one.dtype):
        shape = (stop - start, *one.shape[1:]) if one.shape else ()
        read = [torch.empty(shape, dtype=one.dtype) for _ in range(2)]
        for lazy, out in zip((one, other), read, strict=True):
            lazy.rows(out, start)
        if one.dtype != other.dtype or not torch.equal(*read):
            return False
    return True


def _layout_of(opened: Checkpoint) -> str:
    """The layout to save in that is the base's own."""
    name = opened.layout.name
    return "hf" if name.startswith("hf") else "llava" if name == "llava" else "official"
