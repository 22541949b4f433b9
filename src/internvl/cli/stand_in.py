"""A checkpoint of a published model's shape with random weights: as large and as slow, and it says nothing.

For measurements and tests. Its tokenizer has one token a byte and the template's marks; rows of the
vocabulary above them have no text.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from internvl.checkpoints.write import save_model
from internvl.config import ADDED_TOKENS, ChatConfig
from internvl.errors import ConfigError
from internvl.models.vlm import VLM

END = "<|endoftext|>"
MARKS = (END, "<|im_start|>", "<|im_end|>", "</s>", *ADDED_TOKENS)
SPREAD = 0.035
"""Weights are uniform in +-SPREAD (deviation 0.02), so that numbers stay in range through any depth."""


def make_model(config: ChatConfig, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> VLM:
    """Random matrices, norms and scales of one, biases of zero; on the CPU, in evaluation mode."""
    with torch.device("meta"):
        model = VLM(config)
    model.to(dtype).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.uniform_(-SPREAD, SPREAD, generator=generator)
            else:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
    return model.eval()


def write_checkpoint(
    config: ChatConfig, directory: str | Path, *, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> None:
    """Model and tokenizer as a directory in the official layout, in bfloat16 as published."""
    model = make_model(config, dtype=dtype, seed=seed)
    with TemporaryDirectory() as files:
        write_tokenizer(Path(files), config.text.vocab_size)
        save_model(model, config, directory, extra_files_from=files)


def write_tokenizer(directory: Path, vocab_size: int) -> None:
    """tokenizer.json and its configuration: 256 bytes and `MARKS`. Raises ConfigError below that size."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(letters) + len(MARKS):
        raise ConfigError(
            f"{vocab_size} vocabulary rows are too few: bytes and marks need {len(letters) + len(MARKS)}"
        )
    tokenizer = Tokenizer(BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
