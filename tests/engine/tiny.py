"""A vision-language model too small to wait for, requests for it, and the answers `generate` gives them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from internvl.config import ChatConfig, ProjectorConfig, TextConfig, TilingConfig, VisionConfig
from internvl.engine.engine import Engine
from internvl.engine.request import Delta, EngineImage, EngineRequest
from internvl.engine.settings import EngineSettings
from internvl.generation.generate import generate
from internvl.generation.prompt import Prompt
from internvl.generation.result import Generation
from internvl.generation.sampling import Sampling
from internvl.models.vlm import VLM
from tests.generation.tiny import CONFIG, letters

SLOT = 25
"""The id of slots; tests write prompts without it."""

VLM_CONFIG = ChatConfig(
    vision=VisionConfig(image_size=8, patch_size=2, width=8, num_layers=1, num_heads=2, mlp_width=12),
    projector=ProjectorConfig(),
    text=replace(CONFIG, max_positions=256),
    tiling=TilingConfig(tile_size=8),
    template="internvl2_5",
)
TOKENS = VLM_CONFIG.tokens_per_tile


def make_vlm(text: TextConfig | None = None, std: float = 0.5) -> VLM:
    """Random weights, always the same ones."""
    torch.manual_seed(0)
    vlm = VLM(replace(VLM_CONFIG, text=text or VLM_CONFIG.text)).eval()
    for parameter in vlm.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return vlm


def make_image(seed: int, num_tiles: int = 1) -> EngineImage:
    """Random tiles; those of one seed are always the same."""
    tiles = torch.randn(num_tiles, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return EngineImage(key=blake2b(tiles.numpy(), digest_size=16).digest(), tiles_N3HW=tiles)


def make_request(
    key: str, ids: Sequence[int], images: Sequence[EngineImage] = (), **options: Any
) -> EngineRequest:
    """The pictures stand before the ids; options that `EngineRequest` lacks are of `Sampling`."""
    own = {name: options.pop(name) for name in list(options) if name in EngineRequest.__dataclass_fields__}
    slots = [SLOT] * (sum(len(image.tiles_N3HW) for image in images) * TOKENS)
    return EngineRequest(
        key=key, ids=(*slots, *ids), images=tuple(images), sampling=Sampling(**options), **own
    )


def make_engine(vlm: VLM, **settings: Any) -> Engine:
    defaults = {"page_size": 4, "num_pages": 64, "max_step_tokens": 16, "max_running": 8}
    return Engine(vlm, decode=letters, slot_id=SLOT, settings=EngineSettings(**{**defaults, **settings}))


@torch.inference_mode()
def expected(vlm: VLM, request: EngineRequest) -> Generation:
    """What the request gets alone and whole."""
    ids_T = torch.tensor(request.ids)
    x_TD: Tensor = vlm.llm.embed(ids_T)
    if request.images:
        vision_SD = torch.cat([vlm.encode_tiles(image.tiles_N3HW).flatten(0, 1) for image in request.images])
        slots_S = (ids_T == SLOT).nonzero()[:, 0]
        x_TD = vlm.embed(ids_T, slots_S, vision_SD)
    (answer,) = generate(vlm.llm, [Prompt(x_TD, request.sampling)], decode=letters)
    return answer


def finish(engine: Engine, limit: int = 5000) -> list[Delta]:
    """Steps until nothing is left to do; the books are checked after each."""
    deltas: list[Delta] = []
    for _ in range(limit):
        if not engine.has_work:
            return deltas
        deltas += engine.step()
        engine.check()
    raise AssertionError(f"the engine has not finished after {limit} steps")


def ids_of(deltas: Iterable[Delta], key: str, index: int = 0) -> tuple[int, ...]:
    return tuple(
        delta.token.id for delta in deltas if (delta.key, delta.index) == (key, index) and delta.token
    )


def last_of(deltas: Iterable[Delta], key: str, index: int = 0) -> Delta:
    """The piece that ends an answer; there is exactly one, and nothing after it."""
    mine = [delta for delta in deltas if (delta.key, delta.index) == (key, index)]
    assert [delta.finish_reason is None for delta in mine] == [True] * (len(mine) - 1) + [False]
    return mine[-1]
