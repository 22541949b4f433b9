"""From models and settings to the parts of an engine.

Knows how the parts are sized and joined; nothing of requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from internvl.engine.paged_cache import PagedCache
from internvl.engine.planner import Sizes
from internvl.engine.scheduler import Limits
from internvl.engine.settings import EngineSettings
from internvl.engine.towers import encode_with, fingerprint
from internvl.engine.vision_cache import VisionCache
from internvl.engine.vision_disk import VisionDisk
from internvl.engine.vision_encoder import VisionEncoder
from internvl.models.vlm import VLM

ONE_BY_ONE = b"one tile at a time"
"""Marks vision tokens on disk that do not depend, to the last bit, on which tiles went with theirs."""


def make_limits(settings: EngineSettings) -> Limits:
    """The scheduler's part of the settings."""
    return Limits(
        page_size=settings.page_size,
        step_tokens=settings.max_step_tokens,
        rows=settings.max_running,
        patience=settings.patience,
        reserves=settings.is_batch_invariant,
        chunk=settings.fixed_chunk if settings.is_batch_invariant else None,
    )


def make_cache(vlm: VLM, settings: EngineSettings, sizes: Sizes) -> PagedCache:
    """The tensors of all pages."""
    weight = vlm.llm.embed.weight
    return PagedCache(
        vlm.config.text,
        sizes.num_pages,
        settings.page_size,
        dtype=weight.dtype,
        device=weight.device,
        is_int8=settings.kv_format == "int8",
    )


def make_vision(
    models: Mapping[str, VLM],
    towers: Mapping[str, str],
    settings: EngineSettings,
    cache: VisionCache | None,
) -> VisionEncoder:
    """The towers of all models, over `cache` or one of their own, with a disk below it if one is wanted."""
    base, batch = models[""], 1 if settings.is_batch_invariant else None
    encoders = {name: partial(encode_with, models[name], batch) for name in set(towers.values())}
    cache = cache or VisionCache(encoders[""], settings.vision_cache_bytes)
    if settings.vision_directory is not None:
        mark = ONE_BY_ONE if settings.is_batch_invariant else b""
        cache.disk = VisionDisk(
            settings.vision_directory,
            fingerprint(base) + mark,
            settings.vision_directory_bytes,
            base.llm.embed.weight.device,
        )
    return VisionEncoder(encoders, cache)
