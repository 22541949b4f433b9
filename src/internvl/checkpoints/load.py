"""A path becomes a model: built without storage, then filled tensor by tensor in the dtype asked for.

Memory while loading stays at one copy of the weights in that dtype. Also composes a chat model from
a tower, a language model and, optionally, a projector. Knows no hub names (see `checkpoints.hub`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from internvl.checkpoints.fill import fill, fill_packed, place
from internvl.checkpoints.layouts import LLAVA_PROJECTOR, MLP1
from internvl.checkpoints.lazy import Lazy
from internvl.checkpoints.mapped import map_packed
from internvl.checkpoints.read import read_tensors
from internvl.checkpoints.resolve import Checkpoint, open_checkpoint, open_tower
from internvl.checkpoints.rules import Heads, convert, strictly, under
from internvl.config import (
    ChatConfig,
    ContrastiveConfig,
    ProjectorConfig,
    TextConfig,
    TilingConfig,
    VisionConfig,
)
from internvl.errors import ConfigError, DeviceError, InputError, WeightsError
from internvl.models.dual_encoder import DualEncoder
from internvl.models.projector import Projector
from internvl.models.vit import VisionTower
from internvl.models.vlm import VLM

Model = VLM | DualEncoder | VisionTower
DTYPES = ("float32", "bfloat16", "float16", "float64")


def load_model(
    path: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    check_finite: bool = True,
    template: str | None = None,
    vision_path: str | Path | None = None,
) -> Model:
    """Load a chat model, a contrastive model or a vision tower from disk, in evaluation mode.

    `model.config` describes it.

    Args:
        path: a checkpoint directory in any layout, or a weight file.
        dtype: of the weights in memory; "auto" is that of the file.
        device: where they go.
        check_finite: refuse NaN and infinite weights.
        template: chat template; wins over config.json, needed where that names none.
        vision_path: the tower's checkpoint, for LLaVA-style directories without one.

    Raises:
        CheckpointError: files, configuration (ConfigError) or tensors (WeightsError) that do not fit.
        DeviceError: a dtype or device that is not available.
    """
    resolve_device(device)
    checkpoint = open_checkpoint(path, template=template, vision_path=vision_path)
    return load_opened(checkpoint, dtype=dtype, device=device, check_finite=check_finite)


def load_opened(
    checkpoint: Checkpoint,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    check_finite: bool = True,
    quantize: str | Mapping[str, str] | None = None,
) -> Model:
    """As `load_model`, for a checkpoint whose configuration was looked at first.

    With `quantize`, a scheme or {pattern: scheme} (see `adapt.quantize`), linear layers are packed; the rest
    is float32, and weights are read in the dtype of the file. A checkpoint that is packed itself is mapped.
    Raises InputError for another device or dtype, and for schemes and patterns that do not exist.
    """
    config = checkpoint.description.config
    if isinstance(config, TextConfig):
        raise ConfigError(
            f"{checkpoint.path} is a language model alone: join it with a tower by checkpoints.load.compose"
        )
    model = build(config)
    _fill(model, checkpoint, dtype, device, quantize, check_finite=check_finite)
    return model.eval()


def _fill(
    model: Model,
    checkpoint: Checkpoint,
    dtype: str | torch.dtype,
    device: str | torch.device,
    quantize: str | Mapping[str, str] | None,
    *,
    check_finite: bool,
) -> None:
    """As they are, packed, or mapped from a packed checkpoint."""
    target = resolve_device(device)
    packing = checkpoint.description.packing
    if quantize is not None or packing is not None:
        _check_packable(target, dtype)
    if packing is not None:
        if quantize is not None:
            raise InputError(
                f"{checkpoint.path} is packed already ({packing.summary}): leave quantize out, or pack the "
                "checkpoint it was made from"
            )
        map_packed(model, checkpoint)
    elif quantize is not None:
        weights = choose_dtype("auto", checkpoint)
        fill_packed(model, checkpoint, weights, quantize, check_finite=check_finite)
    else:
        fill(model, checkpoint, choose_dtype(dtype, checkpoint), target, check_finite=check_finite)


def _check_packable(device: torch.device, dtype: str | torch.dtype) -> None:
    if device.type != "cpu" or dtype not in ("float32", torch.float32, "auto"):
        raise InputError(
            f"packed weights run on the CPU and compute in float32, not on {device} in {dtype}: leave device "
            "and dtype out, or take a model that is not packed"
        )


def build(config: ChatConfig | ContrastiveConfig | VisionConfig) -> Model:
    """The model of a configuration on the meta device: shapes without storage."""
    with torch.device("meta"):
        if isinstance(config, ChatConfig):
            return VLM(config)
        return DualEncoder(config) if isinstance(config, ContrastiveConfig) else VisionTower(config)


def load_vision(
    path: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    check_finite: bool = True,
    quantize: str | Mapping[str, str] | None = None,
) -> VisionTower:
    """Load only the vision tower, from its own checkpoint or from inside a chat model's; `quantize` as in
    `load_opened`."""
    checkpoint = open_tower(path)
    config = checkpoint.description.config
    if not isinstance(config, VisionConfig):
        raise ConfigError(f"{path} describes no vision tower")
    with torch.device("meta"):
        tower = VisionTower(config)
    _fill(tower, checkpoint, dtype, device, quantize, check_finite=check_finite)
    return tower.eval()


def compose(
    vision_path: str | Path,
    llm_path: str | Path,
    mlp_path: str | Path | None = None,
    *,
    template: str,
    tiling: TilingConfig | None = None,
    projector: ProjectorConfig | None = None,
    select_layer: int = -1,
    system_message: str | None = None,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
) -> VLM:
    """A chat model from a tower, a language model and, where there is one, a trained projector.

    Without `mlp_path` the projector is freshly initialised. The vocabulary stays the language
    model's: add the image tokens to the tokenizer and call `adapt.resize.resize_vocabulary`.

    Raises:
        CheckpointError: parts that cannot be read or are not what they should be.
        DeviceError: a dtype or device that is not available.
    """
    target = resolve_device(device)
    tower, language = open_tower(vision_path), open_checkpoint(llm_path)
    vision, text = tower.description.config, language.description.config
    if not isinstance(vision, VisionConfig) or not isinstance(text, TextConfig):
        raise ConfigError(f"{llm_path} is not a language model on its own")
    config = ChatConfig(
        vision=vision,
        text=text,
        projector=projector or ProjectorConfig(),
        tiling=tiling or TilingConfig(tile_size=vision.image_size),
        select_layer=select_layer,
        template=template,
        system_message=system_message,
    )
    weights = choose_dtype(dtype, language)
    with torch.device("meta"):
        model = VLM(config)
    fill(model.vit, tower, weights, target)
    fill(model.llm, language, weights, target)
    model.projector = _projector(config, mlp_path).to(target, weights)
    return model.eval()


def resolve_device(device: str | torch.device) -> torch.device:
    """A device that works here.

    Raises:
        DeviceError: there is no such device, or this build of torch cannot use it.
    """
    try:
        resolved = torch.device(device)
        torch.empty(1, device=resolved)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DeviceError(f"device {device!r} is not available here: {reason}") from error
    return resolved


def resolve_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A floating dtype by name.

    Raises:
        DeviceError: not one of float32, bfloat16, float16, float64.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise DeviceError(
            f"dtype {name!r} cannot hold the weights; choose one of {', '.join(DTYPES)} or 'auto'"
        )
    resolved = getattr(torch, name)
    if not isinstance(resolved, torch.dtype):
        raise DeviceError(f"this build of torch has no {name}")
    return resolved


def choose_dtype(dtype: str | torch.dtype, checkpoint: Checkpoint) -> torch.dtype:
    """The dtype asked for; "auto" is config.json's, else that of the first tensor."""
    if dtype != "auto":
        return resolve_dtype(dtype)
    first = next(iter(checkpoint.tensors.values()))
    return resolve_dtype(checkpoint.description.dtype or first.dtype)


def _projector(config: ChatConfig, path: str | Path | None) -> Projector:
    projector = Projector(config.projector, config.vision.width, config.text.width)
    if path is None:
        return projector
    tensors = read_tensors(path)
    prefixes = ("mlp1.", "model.mm_projector.", "mm_projector.", "")
    prefix = next(prefix for prefix in prefixes if all(key.startswith(prefix) for key in tensors))
    rules = under(MLP1 if config.projector.norm else LLAVA_PROJECTOR, prefix)
    state = strictly(convert(tensors, rules, Heads(1, 1)))
    _check_projector(state, projector, Path(path))
    projector.load_state_dict(
        {name: place(tensor, torch.float32, torch.device("cpu")) for name, tensor in state.items()},
        assign=True,
    )
    return projector


def _check_projector(state: Mapping[str, Lazy], projector: Projector, path: Path) -> None:
    expected = {name: tuple(value.shape) for name, value in projector.state_dict().items()}
    found = {name: tensor.shape for name, tensor in state.items()}
    if found != expected:
        raise WeightsError(
            f"the projector in {path} has {found}, but tower and language model need {expected}"
        )
