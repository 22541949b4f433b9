"""Every request gets from the engine what `generate` gives it alone, whatever else runs and however."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from internvl.config import RopeConfig, TextConfig
from internvl.engine.engine import Engine
from internvl.engine.request import Delta, EngineRequest
from tests.engine.tiny import (
    VLM_CONFIG,
    expected,
    ids_of,
    last_of,
    make_engine,
    make_image,
    make_request,
    make_vlm,
)

TEXT = VLM_CONFIG.text
VARIANTS: dict[str, TextConfig] = {
    "plain": TEXT,
    "qwen3": replace(TEXT, qk_norm=True),
    "dynamic": replace(TEXT, max_positions=24, rope=RopeConfig(scaling="dynamic", factor=2.0)),
    "longrope": replace(
        TEXT,
        rope=RopeConfig(
            scaling="longrope", original_max_positions=24, short_factors=(1.0, 1.5), long_factors=(2.0, 4.0)
        ),
    ),
}
ENGINES: tuple[dict[str, Any], ...] = (
    {},
    {"max_step_tokens": 8, "max_step_tiles": 1},
    {"num_pages": 14, "max_running": 4},
    {"page_size": 1, "num_pages": 80},
    {"page_size": 16, "num_pages": 8, "max_running": 2, "max_step_tokens": 3},
    {"shares_prefixes": False, "vision_cache_bytes": 0},
    {"num_drafts": 3, "num_pages": 16, "max_step_tokens": 24},
    {"is_batch_invariant": True, "max_step_tokens": 16},
)
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.8, "seed": 3, "top_p": 0.9, "repetition_penalty": 1.3},
    {"presence_penalty": 0.5, "min_new_tokens": 4},
)
# Prompts begin alike often, so that pages are shared.
BEGINNINGS = ([], [1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 5, 11])


def draw_requests(draw: random.Random) -> list[EngineRequest]:
    return [
        make_request(
            str(number),
            [*draw.choice(BEGINNINGS), *(draw.randrange(25) for _ in range(draw.randint(1, 9)))],
            [make_image(draw.randint(0, 2), draw.randint(1, 2)) for _ in range(draw.randint(0, 2))],
            stop_ids=(9,),
            max_new_tokens=draw.randint(4, 14),
            priority=draw.randint(0, 2),
            **draw.choice(WAYS),
        )
        for number in range(draw.randint(2, 7))
    ]


def run(engine: Engine, requests: list[EngineRequest], draw: random.Random) -> tuple[list[Delta], set[str]]:
    """Requests arrive, and are cancelled, at random moments; returns all pieces, and who was cancelled."""
    deltas, waiting, cancelled = [], list(requests), set()
    for _ in range(3000):
        if waiting and draw.random() < 0.5:
            engine.submit(waiting.pop(0))
        if not (waiting or engine.has_work):
            break
        if draw.random() < 0.05:
            key = draw.choice(requests).key
            if key not in {request.key for request in waiting}:
                engine.cancel(key)
                cancelled.add(key)
        deltas += engine.step()
        engine.check()
    assert not waiting
    assert not engine.has_work
    assert engine.stats().pages_used == 0
    return deltas, cancelled


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(8))
def test_random_traffic(variant: str, seed: int) -> None:
    draw = random.Random(seed)
    vlm = make_vlm(VARIANTS[variant])
    engine, requests = make_engine(vlm, **ENGINES[seed % len(ENGINES)]), draw_requests(draw)
    deltas, cancelled = run(engine, requests, draw)
    for request in requests:
        answer, found, last = (
            expected(vlm, request),
            ids_of(deltas, request.key),
            last_of(deltas, request.key),
        )
        if last.finish_reason == "cancelled":
            assert request.key in cancelled
            assert found == answer.ids[: len(found)]
        else:
            assert (found, last.finish_reason) == (answer.ids, answer.finish_reason)
            assert "".join(delta.text for delta in deltas if delta.key == request.key) == answer.text
