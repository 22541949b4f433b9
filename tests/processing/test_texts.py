"""Texts as ids: edges, prefix, what is too long, prompts of captions; equal to the recorded ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from internvl.errors import PromptError, TokenizerError
from internvl.processing.texts import MAX_TOKENS, TextProcessor
from internvl.processing.tokenizer import Encoding, load_tokenizer
from tests.processing.tiny_tokenizers import fast, internlm2, llama, qwen2, row


@pytest.fixture(scope="module")
def folder(golden_dir: Path) -> Path:
    return golden_dir / "internvl_14b"


@pytest.fixture(scope="module")
def processor(folder: Path) -> TextProcessor:
    return TextProcessor(load_tokenizer(folder), vocab_size=560)


def test_recorded_ids(folder: Path, processor: TextProcessor) -> None:
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    captions = expected["settings"]["captions"]
    padded = load_file(folder / "expected.safetensors")["text_input_ids"].tolist()
    assert [processor.ids(text) for text in captions] == [[id for id in row if id] for row in padded]
    for case in expected["tokenizer"]["with_eos"]:
        assert processor.ids(case["text"], prefix="") == case["input_ids"]
    assert processor.prompt() == expected["settings"]["gen_prompt_ids"]


def test_recorded_ids_of_training(folder: Path, processor: TextProcessor) -> None:
    """Texts to be matched have no prefix, captions a prompt and a space."""
    captions = json.loads((folder / "expected.json").read_text(encoding="utf-8"))["settings"]["captions"]
    tensors = load_file(folder / "expected.safetensors")
    matched, written = (
        [[id for id in row if id] for row in tensors[f"train.{name}input_ids"].tolist()]
        for name in ("positive_", "")
    )
    assert [processor.ids(text, prefix="") for text in captions] == matched
    assert [processor.caption(text)[0] for text in captions] == written


def test_the_prompt_of_a_caption_is_counted(processor: TextProcessor) -> None:
    ids, count = processor.caption("a red panda")
    assert ids[:count] == processor.prompt()
    assert ids[-1] == processor.eos_id
    assert processor.text(ids[count:]) == "a red panda"
    assert processor.caption("a", prompt="x")[1] < count


def test_long_texts_are_refused_or_cut_as_asked(processor: TextProcessor) -> None:
    text = "a red panda " * 40
    whole = processor.tokenizer.encode(f"summarize:{text}", bos=True, eos=True).ids
    with pytest.raises(PromptError, match=rf"{len(whole)} tokens, the limit is 80 .*summarize:a red panda"):
        processor.ids(text)
    cut = processor.ids(text, truncate=True)
    assert cut == [*whole[: MAX_TOKENS - 1], processor.eos_id]
    assert processor.caption(text, truncate=True)[0][-1] == processor.eos_id
    with pytest.raises(PromptError, match="at least"):
        processor.ids("panda" * 100_000)


@pytest.mark.parametrize(
    "piece", ["a red panda ", "panda", " ", " \n", "ab", "熊猫", "<s>", "e\u0301", "x=1;"]
)
@pytest.mark.parametrize("write", [llama, internlm2, qwen2, fast])
def test_the_beginning_of_a_long_text_is_enough(
    write: Callable[[Path], Path], piece: str, tmp_path: Path
) -> None:
    processor = TextProcessor(load_tokenizer(write(tmp_path)), max_tokens=9)
    encode, lengths = processor.tokenizer.encode, []

    def watched(text: str, **options: Any) -> Encoding:
        lengths.append(len(text))
        return encode(text, **options)

    text = f"a{piece * 20_000}"
    has_bos = processor.tokenizer.bos_id is not None
    whole = encode(f"summarize:{text}", plain=[(0, len(text) + 10)], bos=has_bos, eos=True).ids
    processor.tokenizer.encode = watched  # type: ignore[method-assign]
    assert processor.ids(text, truncate=True) == [*whole[:8], processor.eos_id]
    assert sum(lengths) < 20_000
    count = len(processor.tokenizer.encode("English caption:", bos=has_bos).ids)
    ids, num_prompt = processor.caption(text, truncate=True)
    assert (len(ids), num_prompt) == (9, min(count, 8))


def test_white_space_that_is_little_of_a_text_is_read_to_its_end(tmp_path: Path) -> None:
    """Where it is swallowed, beginnings have too few tokens."""
    added = tuple(row(token, rstrip=True) for token in ("<ref>", "</ref>"))
    processor = TextProcessor(load_tokenizer(llama(tmp_path, added=added)), max_tokens=9)
    text = f"<ref>{' ' * 9000}a dog is in the picture and sleeps"
    whole = processor.tokenizer.encode(text, plain=[(0, len(text))], bos=True, eos=True).ids
    assert processor.ids(text, prefix="", truncate=True) == [*whole[:8], processor.eos_id]


def test_as_many_tokens_as_allowed_are_kept(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    whole = TextProcessor(tokenizer).ids("a photo of a red panda")
    assert TextProcessor(tokenizer, max_tokens=len(whole)).ids("a photo of a red panda") == whole
    with pytest.raises(PromptError, match=f"limit is {len(whole) - 1}"):
        TextProcessor(tokenizer, max_tokens=len(whole) - 1).ids("a photo of a red panda")


def test_names_of_special_tokens_are_letters(processor: TextProcessor) -> None:
    ids = processor.ids("a </s> b <s>")
    assert (ids.count(1), ids.count(2)) == (1, 1)
    assert processor.text(ids) == "summarize:a </s> b <s>"


def test_a_tokenizer_without_bos(tmp_path: Path) -> None:
    processor = TextProcessor(load_tokenizer(qwen2(tmp_path)))
    assert processor.tokenizer.bos_id is None
    plain = processor.tokenizer.encode("summarize:a dog").ids
    assert processor.ids("a dog") == [*plain, processor.eos_id]
    assert processor.prompt("a dog") == plain[-len(processor.prompt("a dog")) :]
    ids, count = processor.caption("a dog")
    assert ids[:count] == processor.prompt()


def test_what_is_refused(folder: Path, processor: TextProcessor, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="must be a string, not 3"):
        processor.ids(3)
    with pytest.raises(TokenizerError, match="560 ids, but the model's vocabulary only 559"):
        TextProcessor(load_tokenizer(folder), vocab_size=559)
    with pytest.raises(TokenizerError, match="no eos token"):
        TextProcessor(load_tokenizer(qwen2(tmp_path, eos_token=None)))
