"""What the process of an engine needs to make it, told in words that can be sent there.

Imported by that process: loads no command and no server.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from internvl.api.chat import ChatModel
from internvl.api.engine import make_engine
from internvl.api.load import load
from internvl.cli.machine import free_memory
from internvl.engine.engine import Engine
from internvl.engine.settings import EngineSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSource:
    """A chat model on this disk, as `api.load.load` takes it, and its engine. `cache_part` of the memory that
    is free once the model is loaded is for keys and values; None: what `settings` say."""

    path: Path
    device: str
    dtype: str
    quantize: str | None
    threads: int | None
    template: str | None
    settings: EngineSettings
    cache_part: float | None
    adapters: tuple[tuple[str, Path], ...]

    def __call__(self) -> Engine:
        """Raises as `load` and `make_engine` do."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        model = load(
            self.path,
            device=self.device,
            dtype=self.dtype,
            quantize=self.quantize,
            template=self.template,
        )
        assert isinstance(model, ChatModel)
        settings = self.settings
        if self.cache_part is not None:
            settings = replace(settings, cache_bytes=int(self.cache_part * free_memory(self.device)))
        return make_engine(model, settings, adapters=dict(self.adapters), keep_tags=True)
