"""GGUF in 16 bits to Q8_0 or Q4_0 (blocks of 32 with a scale): matrices only, the head of Q4_0 in Q8_0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, quants

KINDS = {"q8_0": (GGMLQuantizationType.Q8_0, 7), "q4_0": (GGMLQuantizationType.Q4_0, 2)}
"""The format of weights, and the number that a file says it with."""
HEAD = "output.weight"


def quantize(source: Path, target: Path, kind: str) -> None:
    format, number = KINDS[kind]
    reader = GGUFReader(source)
    writer = GGUFWriter(target, _value(reader, "general.architecture"))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = number if name == "general.file_type" else field.contents()
        inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, field.types[0], inner)
    for tensor in reader.tensors:
        rows = tensor.data
        if not is_packed(tensor):
            writer.add_tensor(tensor.name, rows, raw_dtype=tensor.tensor_type)
            continue
        chosen = GGMLQuantizationType.Q8_0 if tensor.name == HEAD else format
        packed = quants.quantize(rows.astype(np.float32), chosen)
        writer.add_tensor(tensor.name, packed, raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def is_packed(tensor: Any) -> bool:
    """Matrices whose rows are whole blocks; not the tower's patches and positions."""
    is_matrix = len(tensor.shape) == 2 and tensor.shape[0] % 32 == 0
    return is_matrix and not tensor.name.startswith(("v.patch", "v.position", "v.class"))


def _value(reader: GGUFReader, name: str) -> Any:
    return reader.fields[name].contents()
