"""A checkpoint as OpenVINO GenAI reads it, in float32, by optimum-intel. Runs in a Python of its own.

`python -m runtimes.export_openvino CHECKPOINT TARGET`
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import openvino
from openvino_tokenizers import convert_tokenizer
from optimum.exporters.openvino import main_export
from optimum.intel import OVConfig
from transformers import PreTrainedTokenizerFast

CODE = "chat_for_export"


def main() -> None:
    checkpoint, target = map(Path, sys.argv[1:])
    with TemporaryDirectory(prefix="internvl-openvino-") as folder:
        prepare(checkpoint, Path(folder))
        main_export(
            folder, target, task="image-text-to-text", trust_remote_code=True, library_name="transformers",
            ov_config=OVConfig(dtype="fp32"), convert_tokenizer=False,
        )  # fmt: skip
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    models = convert_tokenizer(tokenizer, with_detokenizer=True)
    for name, model in zip(("tokenizer", "detokenizer"), models, strict=True):
        openvino.save_model(model, target / f"openvino_{name}.xml")


def prepare(checkpoint: Path, folder: Path) -> None:
    """Links to the weights, and a configuration that names the code beside it."""
    for file in checkpoint.iterdir():
        if file.suffix == ".safetensors":
            (folder / file.name).symlink_to(file.resolve())
        else:
            shutil.copy(file, folder)
    shutil.copy(Path(__file__).with_name(f"{CODE}.py"), folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    model = f"{CODE}.InternVLChatModel"
    config["auto_map"] = {
        "AutoConfig": f"{CODE}.InternVLChatConfig",
        "AutoModel": model,
        "AutoModelForCausalLM": model,
    }
    path.write_text(json.dumps(config), encoding="utf-8")


if __name__ == "__main__":
    main()
