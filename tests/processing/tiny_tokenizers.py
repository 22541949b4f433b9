"""Tiny vocabularies trained on the spot, written in the layouts of published checkpoints."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

SENTENCES = (
    "The quick brown fox jumps over the lazy dog, and the dog sleeps.",
    "A red panda is sitting on a wooden platform in the forest.",
    "Please describe the image shortly; what is in the picture?",
    "Hello, who are you? I'm a model that reads pictures and text.",
    "你好，你是谁？请详细描述图片。一只熊猫。",
    "x = 1; y = 2; print(x + y)  # 3.14",
) * 3

UNUSED = tuple(f"[UNUSED_TOKEN_{index}]" for index in range(4))
IMAGE_TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def row(content: str, special: bool = True, **flags: bool) -> dict[str, Any]:
    """One entry of added_tokens_decoder."""
    marks = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    return {"content": content, "special": special, **marks, **flags}


@cache
def pieces(
    add_dummy_prefix: bool = True, size: int = 420, *, remove_extra_whitespaces: bool = False
) -> bytes:
    """A SentencePiece BPE with byte fallback; ids 0, 1, 2 are <unk>, <s>, </s>."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        vocab_size=size,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=remove_extra_whitespaces,
        add_dummy_prefix=add_dummy_prefix,
        user_defined_symbols=list(UNUSED),
        minloglevel=2,
    )
    return model.getvalue()


@cache
def byte_level(size: int = 420) -> tuple[dict[str, int], list[str]]:
    """Vocabulary and merges of a byte-level BPE."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=sorted(alphabet), show_progress=False)
    trained.train_from_iterator(SENTENCES, trainer)
    model = json.loads(trained.to_str())["model"]
    return model["vocab"], [" ".join(pair) for pair in model["merges"]]


def write_json(directory: Path, name: str, value: object) -> None:
    (directory / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def llama(
    directory: Path, *, legacy: bool = True, added: tuple[dict[str, Any], ...] = (), **config: Any
) -> Path:
    """tokenizer.model with LlamaTokenizer; `added` get the ids behind the vocabulary."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.model").write_bytes(pieces())
    tokens = (row("<unk>"), row("<s>"), row("</s>"))
    decoder = {str(id): token for id, token in [*enumerate(tokens), *enumerate(added, start=420)]}
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": legacy,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": [token["content"] for token in added if token["special"]],
    }
    write_json(directory, "tokenizer_config.json", settings | config)
    return directory


def internlm2(directory: Path, **config: Any) -> Path:
    """tokenizer.model without a dummy prefix; <|im_end|> and <|im_start|> take the place of unused pieces."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.model").write_bytes(pieces(add_dummy_prefix=False))
    model = sentencepiece.SentencePieceProcessor()
    model.LoadFromSerializedProto(pieces(add_dummy_prefix=False))
    ids = {model.piece_to_id(UNUSED[0]): "<|im_end|>", model.piece_to_id(UNUSED[1]): "<|im_start|>"}
    ids |= dict(enumerate(IMAGE_TOKENS, start=420)) | {0: "<unk>", 1: "<s>", 2: "</s>"}
    settings = {
        "tokenizer_class": "InternLM2Tokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "</s>",
        "added_tokens_decoder": {str(id): row(content) for id, content in ids.items()},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>", *IMAGE_TOKENS],
    }
    write_json(directory, "tokenizer_config.json", settings | config)
    return directory


def qwen2(directory: Path, *, extra: tuple[dict[str, Any], ...] = (), **config: Any) -> Path:
    """vocab.json and merges.txt with Qwen2Tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = byte_level()
    write_json(directory, "vocab.json", vocabulary)
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    added = [*(row(content) for content in (*CHATML, *IMAGE_TOKENS)), *extra]
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "added_tokens_decoder": {str(id): token for id, token in enumerate(added, start=len(vocabulary))},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>", *IMAGE_TOKENS],
    }
    write_json(directory, "tokenizer_config.json", settings | config)
    return directory


def fast(directory: Path, *, begin: str | None = None, **changes: Any) -> Path:
    """A byte-level tokenizer.json with PreTrainedTokenizerFast; `begin` goes in front of every text."""
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = byte_level()
    tokens = [row(content) for content in ("<|begin_of_text|>", "<|eot_id|>", *IMAGE_TOKENS)]
    added = [{"id": id, **token} for id, token in enumerate(tokens, start=len(vocabulary))]
    single = [{"SpecialToken": {"id": begin, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    processor = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}}
    description = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "post_processor": processor if begin else None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [merge.split(" ") for merge in merges]},
    }
    write_json(directory, "tokenizer.json", description | changes)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": begin,
        "eos_token": "<|eot_id|>",
        "clean_up_tokenization_spaces": False,
    }
    write_json(directory, "tokenizer_config.json", settings)
    return directory
