"""Where a model's weights are: devices, dtypes, and the map that the published scripts make for several GPUs.

Knows no checkpoints beyond the number of their layers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from internvl.checkpoints.load import resolve_device, resolve_dtype
from internvl.compat.configuration import FILES, fetch, published_config
from internvl.errors import ConfigError, DeviceError, InputError

DeviceMap = str | int | torch.device | Mapping[str, Any] | None

FIRST_DEVICE = (
    "vision_model",
    "mlp1",
    "language_model.model.tok_embeddings",
    "language_model.model.embed_tokens",
    "language_model.output",
    "language_model.model.norm",
    "language_model.lm_head",
    "language_model.model.rotary_emb",
)
"""What stays together with the first and the last layer."""

TOWER_SHARE = 0.5
"""How much of the first GPU the vision tower takes."""


class Placed(ABC):
    """A model that can be moved, as a torch module can. Each call returns the model itself."""

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """The weights."""

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights, under no published names: for counting them."""
        return self.module.parameters()

    def eval(self) -> Self:
        """Nothing to do: models are loaded for use. For training see `internvl.training`."""
        return self

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As `Module.to`. Raises DeviceError for a device or dtype that is not available here."""
        for wanted in (*args, *kwargs.values()):
            _check(wanted)
        self.module.to(*args, **kwargs)
        return self

    def cuda(self, device: int | str | torch.device | None = None) -> Self:
        """To the GPU. Raises DeviceError where there is none."""
        return self.to(f"cuda:{device}" if isinstance(device, int) else device or "cuda")

    def cpu(self) -> Self:
        return self.to("cpu")

    def half(self) -> Self:
        return self.to(torch.float16)

    def bfloat16(self) -> Self:
        return self.to(torch.bfloat16)

    def float(self) -> Self:
        return self.to(torch.float32)


def _check(wanted: object) -> None:
    if isinstance(wanted, torch.dtype):
        resolve_dtype(wanted)
    elif isinstance(wanted, str | torch.device):
        try:
            resolve_device(wanted)
        except DeviceError as error:
            raise DeviceError(
                f"{error}; leave the move out (.cuda(), .to({str(wanted)!r})) to run on the CPU"
            ) from error


def choose_device(device_map: DeviceMap) -> torch.device:
    """The one device of a `device_map`: None is the CPU, "auto" a GPU if there is one, a number a GPU.

    Raises DeviceError for a map over several devices, which this version does not run.
    """
    if device_map is None:
        return torch.device("cpu")
    if isinstance(device_map, Mapping):
        devices = {_device(value) for value in device_map.values()}
        if len(devices) != 1:
            raise DeviceError(
                f"device_map spreads the model over {len(devices)} devices, this version runs it on one: "
                "pass device_map='cuda:0', or None for the CPU"
            )
        return devices.pop()
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    return _device(device_map)


def _device(value: Any) -> torch.device:
    if value == "disk":
        raise DeviceError("device_map puts weights on the disk: choose 'cpu', weights are read from there")
    try:
        return torch.device("cuda", value) if isinstance(value, int) else torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(f"device_map names {value!r}, which is no device") from error


def split_model(model_name: str | Path, world_size: int | None = None) -> dict[str, int]:
    """Which GPU holds which part, computed from the model's own number of layers (InternVL placement rule).

    The first GPU also holds the tower, the embeddings, the head and the last layer, so that input and output
    are on one device. `world_size` None counts the GPUs of this machine. Only the configuration is read;
    errors as `AutoConfig.from_pretrained`, DeviceError where there is no GPU.
    """
    if world_size is None:
        world_size = torch.cuda.device_count()
        if world_size == 0:
            raise DeviceError("there is no GPU to split a model over: leave device_map out to use the CPU")
    if world_size < 1:
        raise InputError(f"world_size must be at least 1, not {world_size}")
    num_layers = _count_layers(model_name)
    each = math.ceil(num_layers / (world_size - TOWER_SHARE))
    counts = [math.ceil(each * (1 - TOWER_SHARE)), *[each] * (world_size - 1)]
    owners = [gpu for gpu, count in enumerate(counts) for _ in range(count)][:num_layers]
    owners[-1] = 0
    layers = {f"language_model.model.layers.{index}": gpu for index, gpu in enumerate(owners)}
    return {**dict.fromkeys(FIRST_DEVICE, 0), **layers}


def _count_layers(model_name: str | Path) -> int:
    config = published_config(fetch(model_name, FILES))
    if "llm_config" not in config:
        raise ConfigError(f"{model_name} has no language model whose layers could be split")
    return int(config.llm_config.num_hidden_layers)
