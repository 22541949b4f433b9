"""OpenVINO's models with packed weights, by nncf: 8 bits, or 4 in groups of 128 in the language model."""

from __future__ import annotations

import shutil
from pathlib import Path

import nncf
import openvino


def compress(source: Path, target: Path, bits: int) -> None:
    core = openvino.Core()
    for file in source.iterdir():
        if file.name.endswith("_model.xml"):
            settings = {"mode": nncf.CompressWeightsMode.INT8_ASYM}
            if bits == 4 and "language" in file.name:
                settings = {"mode": nncf.CompressWeightsMode.INT4_ASYM, "group_size": 128, "ratio": 1.0}
            packed = nncf.compress_weights(core.read_model(file), **settings)
            openvino.save_model(packed, target / file.name, compress_to_fp16=False)
        elif not file.name.endswith("_model.bin"):
            shutil.copy(file, target)
