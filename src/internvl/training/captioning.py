"""A captioning run: frozen tower and language model, cached features, several captions a picture.

Joins `data.caption_set`, `training.features` and the loop; the recipe says what to train.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from internvl.checkpoints.load import load_model
from internvl.config import ChatConfig
from internvl.data.caption_set import CaptionSet, Questions, open_captions
from internvl.data.captions import CaptionBatch, pack_groups
from internvl.errors import TrainingError
from internvl.models.projector import Projector
from internvl.models.vlm import VLM
from internvl.training.features import Features, cache_features, features_key
from internvl.training.loop import train
from internvl.training.objectives import caption_tokens
from internvl.training.recipe import Recipe
from internvl.training.state import trained


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionRecipe:
    """A recipe, what is asked about the pictures, and the dtypes of the frozen parts."""

    run: Recipe
    questions: Questions
    language: str = "en"
    llm_dtype: str = "bfloat16"
    feature_dtype: str = "bfloat16"
    """Of the tower over the training pictures; held-out ones are always computed in float32."""
    eval_pictures: int = 200


def run_captioning(recipe: CaptionRecipe, checkpoint: Path, data: Path, out: Path) -> Path:
    """Trains a fresh projector between the parts of `checkpoint`; returns the file of trained weights.

    `data` holds train.jsonl and val.jsonl (see `data.records`). `out` receives features, log, state and
    `trained.safetensors` in bfloat16. An interrupted run continues when called again. Raises
    TrainingError, or the errors of the files it reads.
    """
    out.mkdir(parents=True, exist_ok=True)
    model = load_model(checkpoint)
    if not isinstance(model, VLM):
        raise TrainingError(f"{checkpoint} is not a chat model: captions need a projector to train")
    model.projector = _fresh_projector(model.config, recipe.run.seed)
    sets = {
        split: open_captions(
            data / f"{split}.jsonl", checkpoint, model.config, recipe.questions, recipe.language
        )
        for split in ("train", "val")
    }
    dtypes = {"train": getattr(torch, recipe.feature_dtype), "val": torch.float32}
    features = {
        split: _features(model, captions, out, split, dtypes[split]) for split, captions in sets.items()
    }
    model.llm.to(getattr(torch, recipe.llm_dtype))

    def batches(step: int) -> CaptionBatch:
        chosen = sets["train"].choose(step, recipe.run.batch_size, recipe.run.seed)
        return _batch(sets["train"], features["train"], *chosen)

    def evaluate(_: nn.Module) -> dict[str, float]:
        return {"val_loss": _held_out_loss(model, sets["val"], features["val"], recipe)}

    done = train(model, recipe.run, caption_tokens, batches, out, evaluate=evaluate)
    path = out / "trained.safetensors"
    metadata = {"recipe": recipe.run.name, "step": str(done)}
    save_file({name: value.bfloat16().contiguous() for name, value in trained(model).items()}, path, metadata)
    return path


def _features(model: VLM, captions: CaptionSet, out: Path, split: str, dtype: torch.dtype) -> Features:
    """From disk if they are of this tower and these pictures, else computed."""
    key = features_key(model, (record.image for record in captions.records), dtype)
    path = out / f"{split}-{key}.npy"
    return cache_features(model, captions.tiles, len(captions.records), path, dtype=dtype)


def _fresh_projector(config: ChatConfig, seed: int) -> Projector:
    """The projector of a newly made model, so that it does not depend on the checkpoint's."""
    torch.manual_seed(seed)
    return VLM(config).projector


def _batch(
    captions: CaptionSet, features: Features, indices: list[int], questions: list[str]
) -> CaptionBatch:
    groups = [captions.group(index, text) for index, text in zip(indices, questions, strict=True)]
    return pack_groups(groups, captions.context_id, features.take(indices))


@torch.no_grad()
def _held_out_loss(model: VLM, captions: CaptionSet, features: Features, recipe: CaptionRecipe) -> float:
    """Mean loss of a caption token on the first held-out pictures, asked the main question."""
    model.eval()
    total, count = 0.0, 0
    limit = min(recipe.eval_pictures, len(captions.records))
    for first in range(0, limit, 8):
        indices = list(range(first, min(first + 8, limit)))
        loss = caption_tokens(
            model, _batch(captions, features, indices, [recipe.questions.main] * len(indices))
        )
        total, count = total + float(loss.total), count + loss.count
    return total / count
