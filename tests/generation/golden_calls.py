"""The calls recorded in the golden chat fixtures, made ready to be repeated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from internvl.checkpoints.load import load_model
from internvl.generation.prompt import Prompt
from internvl.generation.sampling import Sampling
from internvl.models.vlm import VLM


class Golden:
    """One golden chat checkpoint: model, expected values, and prompts built from ids and pixels."""

    def __init__(self, directory: Path) -> None:
        model = load_model(directory)
        assert isinstance(model, VLM)
        self.model = model
        self.calls: dict[str, Any] = json.loads((directory / "expected.json").read_text(encoding="utf-8"))
        self.tensors = load_file(directory / "expected.safetensors")
        text = json.loads((directory / "config.json").read_text(encoding="utf-8"))["llm_config"]
        self.start_id: int = text["bos_token_id"]
        self.pad_id: int | None = text.get("pad_token_id")

    def pixels(self, call: Mapping[str, Any]) -> Tensor:
        """The tiles named by a call, e.g. "concat(pixel_values_1, pixel_values_2)"."""
        names = [
            name for name in ("pixel_values_1", "pixel_values_2") if name in (call["pixel_values"] or "")
        ]
        side = self.model.config.tiling.tile_size
        return torch.cat([self.tensors[name] for name in names]) if names else torch.empty(0, 3, side, side)

    def prompts(self, name: str) -> list[Prompt]:
        """One prompt per sample of the call, without padding."""
        call = self.calls[name]
        sampling = self.sampling(call)
        if "attention_mask" not in call:
            return [Prompt(self.embed(call["input_ids"], self.pixels(call)), sampling, [self.start_id])]
        parts = self.pixels(call).split(call["num_patches_list"])
        prompts = []
        for ids, mask, tiles in zip(call["input_ids"], call["attention_mask"], parts, strict=True):
            real = [token for token, is_real in zip(ids, mask, strict=True) if is_real]
            prompts.append(Prompt(self.embed(real, tiles), sampling, [self.start_id]))
        return prompts

    def sampling(self, call: Mapping[str, Any]) -> Sampling:
        settings = {key: value for key, value in call["generation_config"].items() if key != "do_sample"}
        return Sampling(**settings, stop_ids=(call["eos_token_id"],))

    @torch.inference_mode()
    def embed(self, ids: list[int], tiles: Tensor) -> Tensor:
        ids_T = torch.tensor(ids)
        slots = (ids_T == self.calls["settings"]["img_context_token_id"]).nonzero()[:, 0]
        width = self.model.config.text.width
        vision = self.model.encode_tiles(tiles).flatten(0, 1) if len(tiles) else torch.empty(0, width)
        return self.model.embed(ids_T, slots, vision)


load_golden = cache(Golden)
