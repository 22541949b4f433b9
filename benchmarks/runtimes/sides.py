"""Everybody who is asked: name, module, variant, number format, and what has to be installed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Format:
    """What the products of many rows are computed in, and the bytes that a token reads for each weight of the
    language model's blocks and of its head."""

    is_integer: bool
    block_bytes: float
    head_bytes: float


FLOAT = Format(is_integer=False, block_bytes=4, head_bytes=4)
HALF = Format(is_integer=False, block_bytes=2, head_bytes=2)
INT8 = Format(is_integer=True, block_bytes=1, head_bytes=1)
INT4 = Format(is_integer=True, block_bytes=4.5 / 8, head_bytes=1)
STORED8 = Format(is_integer=False, block_bytes=1, head_bytes=1)
STORED4 = Format(is_integer=False, block_bytes=4.25 / 8, head_bytes=1)


@dataclass(frozen=True, slots=True)
class Spec:
    module: str
    variant: str
    format: Format
    needs: tuple[str, ...]
    """Names of `files.MAKERS`."""
    imports: tuple[str, ...] = ()
    packages: str = ""
    """What `pip install` brings them."""

    @property
    def is_ours(self) -> bool:
        return self.module in ("ours", "cold")


def _ours(variant: str, format: Format) -> Spec:
    return Spec("ours", variant, format, ("model",))


def _copy(scheme: str, format: Format) -> Spec:
    """From a packed copy on disk, as the packed peers have theirs."""
    return Spec("ours", f"internvl-{scheme}", format, ("model", f"internvl-{scheme}"))


ORT = (("onnxruntime", "onnx"), "onnxruntime onnx")
GENAI = (("openvino_genai", "nncf"), "openvino-genai nncf")
LLAMA = (("xllamacpp", "gguf"), "xllamacpp gguf")

SIDES = {
    "internvl float32": _ours("", FLOAT),
    "internvl float32 packed": _ours("float32", FLOAT),
    "internvl bfloat16": _copy("bfloat16", HALF),
    "internvl int8": _copy("int8", INT8),
    "internvl int4": _copy("int4", INT4),
    "internvl chat": Spec("cold", "", FLOAT, ()),
    "internvl chat int8": Spec("cold", "internvl-int8", INT8, ("model", "internvl-int8")),
    "transformers float32": Spec("with_transformers", "", FLOAT, ("hf",), ("transformers",), "transformers"),
    "openvino float32": Spec("with_openvino", "", FLOAT, ("onnx",), ("openvino", "onnx"), "openvino onnx"),
    "onnxruntime float32": Spec("with_onnxruntime", "float32", FLOAT, ("onnx",), *ORT),
    "onnxruntime int8": Spec("with_onnxruntime", "int8", INT8, ("onnx-int8",), *ORT),
    "openvino genai float32": Spec("with_genai", "float32", FLOAT, ("openvino-float32",), *GENAI),
    "openvino genai int8": Spec("with_genai", "int8", STORED8, ("openvino-int8",), *GENAI),
    "openvino genai int4": Spec("with_genai", "int4", STORED4, ("openvino-int4",), *GENAI),
    "llama.cpp Q8_0": Spec("with_llamacpp", "q8_0", INT8, ("gguf-q8_0", "mmproj-q8_0"), *LLAMA),
    "llama.cpp Q4_0": Spec("with_llamacpp", "q4_0", INT4, ("gguf-q4_0", "mmproj-f16"), *LLAMA),
}
