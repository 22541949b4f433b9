"""Tiny checkpoints that have the layers which nano's recipes name, and a few records for them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image

from internvl.checkpoints.write import save_model
from internvl.models.dual_encoder import DualEncoder
from internvl.models.vlm import VLM
from internvl.training.build import build
from internvl.training.build_pairs import build_pairs
from internvl.training.recipe import ModelSpec
from tests.conftest import GoldenFixtures

NUM_BLOCKS = 12
NUM_LAYERS = 16
"""One of them in the upper half of nano-c's text model."""


class Small(NamedTuple):
    checkpoint: Path
    records: Path
    pairs: Path
    dual: Path
    captions: Path


@pytest.fixture(scope="session")
def small(golden_dir: GoldenFixtures, tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The golden models with more blocks in the tower, or in the text model of the dual encoder; captions of
    pictures, text, and preferences."""
    folder = tmp_path_factory.mktemp("small")
    start = build(ModelSpec(checkpoint=str(golden_dir / "internvl2_5_qwen2"), max_tiles=2), 0)
    config = start.model.config
    torch.manual_seed(0)
    deep = VLM(replace(config, vision=replace(config.vision, num_layers=NUM_BLOCKS)))
    save_model(deep, deep.config, folder / "model", extra_files_from=start.source)
    records, pairs = [], []
    for index in range(8):
        name, question = f"{index}.png", f"What is {index}?"
        Image.new("RGB", (84, 84), (index * 30, 200 - index * 20, 90)).save(folder / name)
        image = {"image": name} if index % 4 else {}
        records.append(
            {**image, "question": question, "answers": ["A square.", "It is red."][: 1 + index % 2]}
        )
        pairs.append({**image, "question": question, "chosen": "A square.", "rejected": "Nothing"})
    pair_start = build_pairs(ModelSpec(checkpoint=str(golden_dir / "internvl_14b")), 0)
    pair_config = pair_start.model.config
    tall = DualEncoder(replace(pair_config, text=replace(pair_config.text, num_layers=NUM_LAYERS)))
    save_model(tall, tall.config, folder / "dual", extra_files_from=pair_start.source)
    captions = [{"image": f"{n}.png", "en": [f"Square {n}.", "Red"], "zh": ["方"]} for n in range(8)]
    files: dict[str, list[dict[str, Any]]] = {
        "records.jsonl": records,
        "pairs.jsonl": pairs,
        "captions.jsonl": captions,
    }
    for file, rows in files.items():
        (folder / file).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    records_file, pairs_file, captions_file = (folder / file for file in files)
    return Small(folder / "model", records_file, pairs_file, folder / "dual", captions_file)
