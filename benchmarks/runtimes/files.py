"""What the sides read: one checkpoint, and from it the format of each runtime. Made once, kept in a folder.

    python -m runtimes.files FOLDER NAME     makes one, in a process of its own

A name is a directory of the folder; it is there whole or not at all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from runtimes import workload
from runtimes.workload import Workload

EXPORT_PYTHON, LLAMA_SOURCES = "INTERNVL_EXPORT_PYTHON", "INTERNVL_LLAMA_SOURCES"
"""Environment variables: a Python that has optimum-intel, and the unpacked sources of llama-cpp-python."""


@dataclass(frozen=True, slots=True)
class Files:
    """The folder of one model, whose name is the folder's."""

    folder: Path

    def path(self, name: str) -> Path:
        found = self.folder / name
        if not found.exists():
            raise FileNotFoundError(f"{found} was not made: `python -m runtimes.files {self.folder} {name}`")
        return found

    def workload(self) -> Workload:
        return workload.load(self.path("model") / "workload.json")

    def ensure(self, name: str) -> None:
        """Makes what is missing. Raises RuntimeError with the last line of what went wrong."""
        if (self.folder / name).exists():
            return
        command = [sys.executable, "-m", "runtimes.files", str(self.folder), name]
        made = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=environment()
        )
        if made.returncode:
            lines = made.stderr.strip().splitlines() or ["no word"]
            raise RuntimeError(f"{name} could not be made: {lines[-1][:300]}")


def environment(**changes: str) -> dict[str, str]:
    """For a process that imports this package."""
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | changes


def make(files: Files, name: str) -> None:
    files.folder.mkdir(parents=True, exist_ok=True)
    maker, arguments = MAKERS[name]
    with TemporaryDirectory(prefix=f"{name}.part-", dir=files.folder) as folder:
        part = Path(folder) / name
        part.mkdir()
        maker(files, part, *arguments)
        part.rename(files.folder / name)


def make_checkpoint(files: Files, target: Path) -> None:
    """Random weights of a published shape; `nano` as it is. What the questions are as ids goes beside it."""
    from runtimes.checkpoint import write

    write(files.folder.name, target)


def make_copy(files: Files, target: Path, scheme: str) -> None:
    """Packed by this package. What random weights lose is no reason to refuse."""
    from internvl.api.packing import quantize

    quantize(files.path("model"), target, scheme, allow_loss=True)


def make_hf(files: Files, target: Path) -> None:
    import internvl

    internvl.save(internvl.load(files.path("model")), target, layout="hf")


def make_onnx(files: Files, target: Path) -> None:
    from runtimes.onnx_graph import export

    export(files.path("model"), target / "vision.onnx")


def make_onnx_int8(files: Files, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    files.ensure("onnx")
    quantize_dynamic(
        files.path("onnx") / "vision.onnx", target / "vision.onnx", per_channel=True, reduce_range=True,
        weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"], use_external_data_format=True,
    )  # fmt: skip


def make_openvino(files: Files, target: Path) -> None:
    """optimum-intel wants a transformers of its own, hence another Python."""
    python = os.environ.get(EXPORT_PYTHON)
    if not python:
        raise SystemExit(f"set {EXPORT_PYTHON} to a Python with optimum-intel, nncf, openvino-tokenizers")
    _run([python, "-m", "runtimes.export_openvino", str(files.path("model")), str(target)])


def make_openvino_packed(files: Files, target: Path, bits: int) -> None:
    from runtimes.compress_openvino import compress

    files.ensure("openvino-float32")
    compress(files.path("openvino-float32"), target, bits)


def make_gguf(files: Files, target: Path, kind: str) -> None:
    """Language model (kind "text") or tower ("mmproj") by the converter of llama.cpp itself, in 16 bits."""
    sources = os.environ.get(LLAMA_SOURCES)
    if not sources:
        raise SystemExit(f"set {LLAMA_SOURCES} to the unpacked sources of llama-cpp-python")
    command = [sys.executable, "-m", "runtimes.convert_gguf", sources, str(files.path("model")), str(target)]
    _run([*command, kind])


def make_gguf_packed(files: Files, target: Path, source: str, kind: str) -> None:
    from runtimes.quantize_gguf import quantize

    files.ensure(source)
    quantize(files.path(source) / "model.gguf", target / "model.gguf", kind)


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, env=environment())


MAKERS: dict[str, tuple[Callable[..., None], tuple[object, ...]]] = {
    "model": (make_checkpoint, ()),
    "internvl-bfloat16": (make_copy, ("bfloat16",)),
    "internvl-int8": (make_copy, ("int8",)),
    "internvl-int4": (make_copy, ("int4",)),
    "hf": (make_hf, ()),
    "onnx": (make_onnx, ()),
    "onnx-int8": (make_onnx_int8, ()),
    "openvino-float32": (make_openvino, ()),
    "openvino-int8": (make_openvino_packed, (8,)),
    "openvino-int4": (make_openvino_packed, (4,)),
    "gguf-f16": (make_gguf, ("text",)),
    "gguf-q8_0": (make_gguf_packed, ("gguf-f16", "q8_0")),
    "gguf-q4_0": (make_gguf_packed, ("gguf-f16", "q4_0")),
    "mmproj-f16": (make_gguf, ("mmproj",)),
    "mmproj-q8_0": (make_gguf_packed, ("mmproj-f16", "q8_0")),
}


if __name__ == "__main__":
    make(Files(Path(sys.argv[1])), sys.argv[2])
