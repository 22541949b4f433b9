"""The published calls on a tokenizer, against transformers' own classes on the same files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from internvl.compat import AutoTokenizer, Tokenizer
from internvl.errors import InputError

TEXTS = ["Hello, who are you?", "a", "<img>", "Please describe the image in detail."]


@pytest.fixture(scope="module")
def theirs(golden_dir: Path) -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(golden_dir / "internvl2_5_qwen2")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "options",
    [
        {"padding": True},
        {"padding": "longest"},
        {"padding": "max_length", "max_length": 40},
        {"padding": "max_length", "max_length": 6, "truncation": True},
        {"padding": True, "truncation": True, "max_length": 4},
    ],
)
def test_padding_and_cutting(tokenizer: Tokenizer, theirs, side, options) -> None:
    tokenizer.padding_side = theirs.padding_side = side
    found = tokenizer(TEXTS, return_tensors="pt", **options)
    expected = theirs(TEXTS, return_tensors="pt", **options)
    assert torch.equal(found.input_ids, expected.input_ids)
    assert torch.equal(found["attention_mask"], expected["attention_mask"])


def test_lists_of_numbers(tokenizer: Tokenizer, theirs) -> None:
    assert tokenizer(TEXTS[0]).input_ids == theirs(TEXTS[0]).input_ids
    assert tokenizer(TEXTS).input_ids == theirs(TEXTS).input_ids
    assert tokenizer(TEXTS).attention_mask == theirs(TEXTS).attention_mask
    assert set(tokenizer(TEXTS, return_attention_mask=False)) == {"input_ids"}


def test_tokens_and_ids(tokenizer: Tokenizer, theirs) -> None:
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == theirs.convert_tokens_to_ids("<|im_end|>")
    names = ["<img>", "</box>", "a"]
    assert tokenizer.convert_tokens_to_ids(names) == theirs.convert_tokens_to_ids(names)
    ids = tokenizer.encode(TEXTS[0])
    assert tokenizer.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
    assert tokenizer.tokenize(TEXTS[0]) == theirs.tokenize(TEXTS[0])
    assert tokenizer.convert_ids_to_tokens(ids[0]) == theirs.convert_ids_to_tokens(ids[0])
    for name in ("eos_token", "eos_token_id", "pad_token", "pad_token_id", "bos_token"):
        assert getattr(tokenizer, name) == getattr(theirs, name)
    assert len(tokenizer) == len(theirs)


@pytest.mark.parametrize("skip", [True, False])
def test_decoding(tokenizer: Tokenizer, theirs, skip: bool) -> None:
    rows = [tokenizer.encode(f"<|im_start|>{text}<|im_end|>") for text in TEXTS]
    expected = theirs.batch_decode(rows, skip_special_tokens=skip)
    assert tokenizer.batch_decode(rows, skip_special_tokens=skip) == expected
    one = tokenizer.decode(torch.tensor(rows[0]), skip_special_tokens=skip)
    assert one == expected[0]
    assert tokenizer.decode(rows[0][1]) == theirs.decode([rows[0][1]])


def test_end_token_as_the_contrastive_quick_start_asks_for(golden_dir: Path) -> None:
    path = golden_dir / "internvl_14b"
    tokenizer = AutoTokenizer.from_pretrained(
        path, use_fast=False, add_eos_token=True, trust_remote_code=True, padding_side="right"
    )
    tokenizer.pad_token_id = 0
    found = tokenizer(
        "summarize:a photo", return_tensors="pt", max_length=20, truncation=True, padding="max_length"
    )
    row = found.input_ids[0].tolist()
    length = int(found.attention_mask.sum())
    assert found.input_ids.shape == (1, 20)
    assert (row[0], row[length - 1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert set(row[length:]) == {0}
    cut = tokenizer("summarize:a photo", max_length=4, truncation=True).input_ids
    assert len(cut) == 4
    assert cut[-1] == tokenizer.eos_token_id


def test_saved_and_read_again(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.encode(TEXTS[3]) == tokenizer.encode(TEXTS[3])


def test_what_is_refused(tokenizer: Tokenizer, folder: Path) -> None:
    with pytest.raises(InputError, match="padding=True"):
        tokenizer(TEXTS, return_tensors="pt")
    with pytest.raises(InputError, match="return_tensors must be 'pt'"):
        tokenizer("a", return_tensors="tf")
    with pytest.raises(InputError, match="max_length"):
        tokenizer("a", padding="max_length")
    tokenizer.pad_token_id = None
    with pytest.raises(InputError, match=r"set tokenizer\.pad_token_id"):
        tokenizer(TEXTS, padding=True)
    with pytest.raises(InputError, match="no bos token"):
        AutoTokenizer.from_pretrained(folder, add_bos_token=True)("a")
    with pytest.raises(InputError, match="padding_side"):
        AutoTokenizer.from_pretrained(folder, padding_side="both")
