"""A tiny tower exported by hand the way the real one was: matrices without names, found by their nodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from internvl.checkpoints.dinov2_onnx import read_tower
from internvl.config import VisionConfig
from internvl.errors import WeightsError
from internvl.models.vit import VisionTower, resize_positions

onnx = pytest.importorskip("onnx")

CONFIG = VisionConfig(image_size=28, width=8, num_layers=2, num_heads=2, mlp_width=12)
STORED_GRID = 3


class Graph:
    """Collects initialisers and the nodes that use them."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.values: dict[str, np.ndarray] = {}
        self.nodes: list[object] = []

    def add(self, name: str, *shape: int) -> np.ndarray:
        self.values[name] = self.random.normal(size=shape).astype(np.float32)
        return self.values[name]

    def used_by(self, node: str, kind: str, *shape: int) -> np.ndarray:
        name = f"onnx::{kind}_{len(self.values)}"
        self.nodes.append(onnx.helper.make_node(kind, ["x", name], [f"{node}_out"], name=node))
        return self.add(name, *shape)

    def write(self, path: Path) -> None:
        values = [onnx.numpy_helper.from_array(value, name) for name, value in self.values.items()]
        graph = onnx.helper.make_graph(self.nodes, "tower", [], [], values)
        onnx.save(onnx.helper.make_model(graph), path)


def write(path: Path, skip: str = "") -> dict[str, np.ndarray]:
    """Writes the graph; returns the weights under our names."""
    graph, width, mlp = Graph(), CONFIG.width, CONFIG.mlp_width
    inside = "backbone.embeddings."
    ours = {
        "embed.class_token": graph.add(f"{inside}cls_token", 1, 1, width),
        "embed.patch.weight": graph.add(f"{inside}patch_embeddings.projection.weight", width, 3, 14, 14),
        "embed.patch.bias": graph.add(f"{inside}patch_embeddings.projection.bias", width),
    }
    first = graph.used_by("/backbone/embeddings/Concat_6", "Concat", 1, 1, width)
    rest = graph.used_by("/backbone/embeddings/Reshape_1", "Reshape", 1, STORED_GRID**2, width)
    ours["embed.position"] = np.concatenate((first, rest), axis=1)
    for index in range(CONFIG.num_layers):
        place, mine = f"backbone.encoder.layer.{index}.", f"layers.{index}."
        node = "/" + place.replace("backbone.encoder.layer.", "backbone/encoder/layer.").removesuffix(".")
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            ours[mine + name] = graph.add(place + name, width)
        for number, name in enumerate(("layer_scale1.lambda1", "layer_scale2.lambda1"), start=1):
            ours[f"{mine}ls{number}"] = graph.add(place + name, width)
        attention = [f"attention/attention/{name}" for name in ("query", "key", "value")]
        ours[f"{mine}attn.qkv.weight"] = np.concatenate(
            [graph.used_by(f"{node}/{name}/MatMul", "MatMul", width, width).T for name in attention]
        )
        ours[f"{mine}attn.qkv.bias"] = np.concatenate(
            [graph.add(f"{place}{name.replace('/', '.')}.bias", width) for name in attention]
        )
        for name, theirs, sizes in (
            ("attn.out", "attention/output/dense", (width, width)),
            ("mlp.fc1", "mlp/fc1", (width, mlp)),
            ("mlp.fc2", "mlp/fc2", (mlp, width)),
        ):
            ours[f"{mine}{name}.weight"] = graph.used_by(f"{node}/{theirs}/MatMul", "MatMul", *sizes).T
            ours[f"{mine}{name}.bias"] = graph.add(f"{place}{theirs.replace('/', '.')}.bias", sizes[1])
    graph.add("backbone.layernorm.weight", width)
    graph.add("backbone.layernorm.bias", width)
    graph.add("decoder.upconv1.weight", 2, 2)
    graph.values.pop(skip, None)
    graph.write(path)
    return ours


def test_every_weight_of_the_tower_is_found(tmp_path: Path) -> None:
    ours = write(tmp_path / "t.onnx")
    tensors = dict(read_tower(tmp_path / "t.onnx", CONFIG).tensors)
    position = tensors.pop("embed.position")
    expected = torch.from_numpy(ours.pop("embed.position"))
    torch.testing.assert_close(position, resize_positions(expected, CONFIG.grid, CONFIG.grid))
    assert set(tensors) == set(ours)
    for name, value in ours.items():
        torch.testing.assert_close(tensors[name], torch.from_numpy(value.copy()), rtol=0, atol=0)


def test_the_weights_fill_a_tower(tmp_path: Path) -> None:
    write(tmp_path / "t.onnx")
    found = read_tower(tmp_path / "t.onnx", CONFIG)
    VisionTower(CONFIG).load_state_dict(dict(found.tensors))
    assert found.final_norm_weight.shape == found.final_norm_bias.shape == (CONFIG.width,)


def test_a_graph_without_a_part_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "t.onnx", skip="backbone.encoder.layer.1.norm2.bias")
    with pytest.raises(WeightsError, match=r"layer\.1\.norm2\.bias"):
        read_tower(tmp_path / "t.onnx", CONFIG)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"t\.onnx"):
        read_tower(tmp_path / "t.onnx", CONFIG)
