"""A DINOv2-shaped ViT inside an ONNX file: its weights under our names.

The exporter kept module names on nodes but not on the matrices of linear layers, so those are found
through the MatMul nodes that use them. Anything else in the graph (a decoder head) is left out. The
final LayerNorm, which InternViT does not have, is returned apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from internvl.config import VisionConfig
from internvl.errors import ConfigError, WeightsError
from internvl.models.vit import resize_positions

if TYPE_CHECKING:
    import onnx

_PREFIX = "backbone."
_CLASS_POSITION = "/backbone/embeddings/Concat_6"
_PATCH_POSITIONS = "/backbone/embeddings/Reshape_1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """Weights of a `VisionTower`, and the final norm that the source had after it."""

    tensors: Mapping[str, Tensor]
    final_norm_weight: Tensor
    final_norm_bias: Tensor


def read_tower(path: Path, config: VisionConfig) -> Tower:
    """The tower of `config` in float32; positions are resized (bicubic) to its grid.

    Raises WeightsError when it is not such a graph, or of other dimensions than `config`. The file must be
    whole: callers check its hash.
    """
    weights = _weights(path)
    embeddings = f"{_PREFIX}embeddings."
    try:
        positions = torch.cat((weights[_CLASS_POSITION], weights[_PATCH_POSITIONS]), dim=1)
        tensors = {
            "embed.class_token": weights[f"{embeddings}cls_token"],
            "embed.position": resize_positions(positions, config.grid, config.grid),
            "embed.patch.weight": weights[f"{embeddings}patch_embeddings.projection.weight"],
            "embed.patch.bias": weights[f"{embeddings}patch_embeddings.projection.bias"],
        }
        for index in range(config.num_layers):
            tensors |= {f"layers.{index}.{name}": value for name, value in _block(weights, index).items()}
        norm = [weights[f"{_PREFIX}layernorm.{kind}"] for kind in ("weight", "bias")]
    except KeyError as error:
        raise WeightsError(f"{path} is not the graph of a DINOv2 tower: it has no {error}") from error
    if tensors["embed.class_token"].shape[-1] != config.width:
        raise WeightsError(
            f"{path}: the tower is {tensors['embed.class_token'].shape[-1]} wide, not {config.width}"
        )
    return Tower(
        tensors={name: value.contiguous() for name, value in tensors.items()},
        final_norm_weight=norm[0],
        final_norm_bias=norm[1],
    )


def _block(weights: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    place = f"{_PREFIX}encoder.layer.{index}."
    inner = f"{place}attention.attention."
    kept = ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")
    linear = ("mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias")
    return {
        **{name: weights[place + name] for name in (*kept, *linear)},
        "attn.qkv.weight": torch.cat(
            [weights[f"{inner}{name}.weight"] for name in ("query", "key", "value")]
        ),
        "attn.qkv.bias": torch.cat([weights[f"{inner}{name}.bias"] for name in ("query", "key", "value")]),
        "attn.out.weight": weights[f"{place}attention.output.dense.weight"],
        "attn.out.bias": weights[f"{place}attention.output.dense.bias"],
        "ls1": weights[f"{place}layer_scale1.lambda1"],
        "ls2": weights[f"{place}layer_scale2.lambda1"],
    }


def _weights(path: Path) -> dict[str, Tensor]:
    """Initialisers by name; matrices by the module of their MatMul; constants by the node that takes them."""
    graph = _graph(path)
    from onnx import numpy_helper

    weights = {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in graph.initializer}
    for node in graph.node:
        constants = [weights[name] for name in node.input if name in weights]
        if len(constants) != 1:
            continue
        if node.op_type == "MatMul":  # ONNX multiplies from the right: (in, out)
            module = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{module}.weight"] = constants[0].T
        elif node.name in (_CLASS_POSITION, _PATCH_POSITIONS):
            weights[node.name] = constants[0]
    return weights


def _graph(path: Path) -> onnx.GraphProto:
    try:
        import onnx
    except ImportError as error:
        raise ConfigError(
            "reading ONNX files needs the package 'onnx': pip install 'internvl[nano]'"
        ) from error
    try:
        return onnx.load(path, load_external_data=False).graph
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error})") from error
