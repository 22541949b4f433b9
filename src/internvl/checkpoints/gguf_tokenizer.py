"""A byte-pair vocabulary, as GGUF files carry it, written as tokenizer files.

GGUF names the rule by which text falls into words instead of spelling it out; the table here does.
Reads no GGUF (see `checkpoints.gguf`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from internvl.errors import TokenizerError

_WORDS: Mapping[str, Any] = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}

PRE_TOKENIZERS: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "default": (_WORDS,),
    "gpt-2": (_WORDS,),
    "smollm": ({"type": "Digits", "individual_digits": True}, _WORDS),
}
"""By `tokenizer.ggml.pre`: how text falls into words before byte-pair merging (llama.cpp, llama-vocab)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VocabularyFile:
    """What a GGUF file says about its tokenizer."""

    tokens: tuple[str, ...]
    special: tuple[str, ...]
    merges: tuple[str, ...]
    pre: str
    bos: str | None
    eos: str | None
    pad: str | None
    adds_bos: bool


def tokenizer_files(vocabulary: VocabularyFile, added: tuple[str, ...] = ()) -> dict[str, str]:
    """`tokenizer.json` and `tokenizer_config.json`; `added` tokens get the ids after the vocabulary.

    Raises TokenizerError when the vocabulary has one of them already.
    """
    ids = {token: id for id, token in enumerate(vocabulary.tokens)}
    clash = sorted(set(added) & set(ids))
    if clash:
        raise TokenizerError(f"the vocabulary already has {clash}; they cannot be added")
    special = {ids[token]: token for token in vocabulary.special}
    special |= {len(ids) + index: token for index, token in enumerate(added)}
    marks = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    full = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id, "content": token, **marks} for id, token in sorted(special.items())],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": PRE_TOKENIZERS[vocabulary.pre]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(ids, vocabulary.merges),
    }
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_bos_token": vocabulary.adds_bos,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {
            str(id): {"content": token, **marks} for id, token in sorted(special.items())
        },
        "additional_special_tokens": [special[id] for id in sorted(special)],
        "bos_token": vocabulary.bos,
        "eos_token": vocabulary.eos,
        "pad_token": vocabulary.pad,
        "unk_token": vocabulary.tokens[0],
    }
    return {
        "tokenizer.json": json.dumps(full, ensure_ascii=False),
        "tokenizer_config.json": json.dumps(settings, ensure_ascii=False, indent=2),
    }


def _bpe(ids: Mapping[str, int], merges: tuple[str, ...]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": dict(ids),
        "merges": list(merges),
    }
