"""A checkpoint to GGUF by llama.cpp's converter, from its sources; language model or tower ("mmproj").

The stand-in's tokenizer is nobody's: its pre-tokenizer is declared to be Qwen2's, and it gets one merge,
without which llama.cpp takes no vocabulary.

`python -m runtimes.convert_gguf SOURCES CHECKPOINT TARGET KIND`
"""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory


def main() -> None:
    sources, checkpoint, target, kind = sys.argv[1:]
    (script,) = Path(sources).rglob("convert_hf_to_gguf.py")
    sys.path[:0] = [str(script.parent), str(script.parent / "gguf-py")]
    from conversion import base

    for found in vars(base).values():
        if isinstance(found, type) and "get_vocab_base_pre" in vars(found):
            found.get_vocab_base_pre = lambda *_: "qwen2"  # type: ignore[attr-defined]
    with TemporaryDirectory(prefix="internvl-gguf-") as folder:
        prepare(Path(checkpoint), Path(folder))
        sys.argv = [str(script), folder, "--outtype", "f16", "--outfile", f"{target}/model.gguf"]
        sys.argv += ["--mmproj"] if kind == "mmproj" else []
        runpy.run_path(str(script), run_name="__main__")


def prepare(checkpoint: Path, folder: Path) -> None:
    """The checkpoint once more, with links to its weights, a merge of two letters, and no word of code that
    somebody might run."""
    for file in checkpoint.iterdir():
        if file.suffix == ".safetensors":
            (folder / file.name).symlink_to(file.resolve())
        else:
            shutil.copy(file, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("auto_map", None)
    path.write_text(json.dumps(config), encoding="utf-8")
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    model = tokenizer["model"]
    if not model["merges"]:
        model["merges"] = [["~", "~"]]
        model["vocab"]["~~"] = max(one["id"] for one in tokenizer["added_tokens"]) + 1
        path.write_text(json.dumps(tokenizer), encoding="utf-8")


if __name__ == "__main__":
    main()
