"""From a chat model to an engine, and from its conversations to requests.

engine = make_engine(model, EngineSettings(max_running=8))
inputs = model.processor(conversation)
engine.submit(make_request("a", inputs, model.sampling(max_new_tokens=64)))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from internvl.api.chat import ChatModel
from internvl.checkpoints.adapters import load_beside
from internvl.config import GROUNDING_TOKENS, IMG_CONTEXT
from internvl.engine.constraint import Vocabulary
from internvl.engine.engine import Engine
from internvl.engine.intake import Intake, Language
from internvl.engine.planner import Sizes
from internvl.engine.request import EngineImage, EngineRequest
from internvl.engine.settings import EngineSettings
from internvl.generation.sampling import Sampling
from internvl.models.vlm import VLM
from internvl.processing.processor import Inputs, Processor


def make_engine(
    model: ChatModel,
    settings: EngineSettings | None = None,
    *,
    adapters: Mapping[str, str | Path] | None = None,
    keep_tags: bool = False,
) -> Engine:
    """An engine that answers for `model`, which may still be asked directly.

    Args:
        model: its weights are shared, and so are its vision tokens, but where answers must not depend on what
            else runs.
        settings: sizes and habits.
        adapters: PEFT directories by the names that requests use; each takes the memory of its factors.
        keep_tags: leave `<ref>` and `<box>` in the text of answers.

    Raises:
        CheckpointError: an adapter that cannot be read or does not fit.
        CapacityError: settings with less room than one page.
    """
    settings = settings or EngineSettings()
    beside: dict[str, VLM] = {}
    for name, directory in (adapters or {}).items():
        made = load_beside(model.vlm, directory)
        assert isinstance(made, VLM)
        beside[name] = made
    return Engine(
        model.vlm,
        **_language(model, keep_tags=keep_tags),
        settings=settings,
        adapters=beside,
        vision_cache=None if settings.is_batch_invariant else model.vision_cache,
    )


def make_intake(model: ChatModel, adapters: Iterable[str], settings: EngineSettings, sizes: Sizes) -> Intake:
    """What plans requests as an engine with these adapters, settings and sizes does, for one that runs
    elsewhere; `model` may be an outline (`api.load.load_outline`)."""
    towers = dict.fromkeys(("", *adapters), "")
    return Intake(model.config, settings, sizes, Language(**_language(model)), towers, {"": b""})


def _language(model: ChatModel, *, keep_tags: bool = False) -> dict[str, Any]:
    """The fields of `intake.Language`."""
    return {
        "decode": model.decoder(keep_tags=keep_tags),
        "slot_id": model.processor.tokenizer.token_id(IMG_CONTEXT),
        "seen_ids": model.seen_ids,
        "vocabulary": make_vocabulary(model.processor),
    }


def make_request(key: str, inputs: Inputs, sampling: Sampling, **fields: Any) -> EngineRequest:
    """A conversation that the processor has prepared, as a request; `fields` are those of `EngineRequest`."""
    images: list[EngineImage] = []
    if inputs.tiles_N3HW is not None:
        tiles = torch.split(inputs.tiles_N3HW, list(inputs.tile_counts))
        images = [
            EngineImage(key=image_key.encode(), tiles_N3HW=part)
            for image_key, part in zip(inputs.image_keys, tiles, strict=True)
        ]
    return EngineRequest(
        key=key,
        ids=tuple(inputs.ids),
        images=tuple(images),
        slots=tuple(inputs.slots),
        sampling=sampling,
        **fields,
    )


def make_vocabulary(processor: Processor) -> Vocabulary:
    """What answers of a given form need to know of the tokenizer."""
    tokenizer = processor.tokenizer
    (end_id,) = processor.stop_ids
    # Forms may hold grounding tags, which are text to them; other marks in a form are spelled out.
    tags = {tokenizer.token_id(tag) for tag in GROUNDING_TOKENS}
    return Vocabulary(
        tokens=[tokenizer.token_bytes(id) for id in range(tokenizer.size)],
        special_ids=sorted({*tokenizer.special_ids, end_id} - tags),
        end_id=end_id,
        encode=lambda text: tokenizer.encode(text, plain=[(0, len(text))], bos=False, eos=False).ids,
    )
