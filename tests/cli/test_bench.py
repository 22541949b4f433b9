"""Measuring: what is counted, and the checkpoint that is made for it."""

from __future__ import annotations

import dataclasses
import mmap
from pathlib import Path

import pytest
import torch

from internvl.cli import measure
from internvl.cli.bench import parse_tiles
from internvl.cli.main import DONE, FAILED, WRONG_USE
from internvl.cli.measure import Timing
from internvl.cli.stand_in import make_model, write_tokenizer
from internvl.config import ADDED_TOKENS
from internvl.errors import ConfigError, InputError
from internvl.models.vlm import VLM
from internvl.processing.tokenizer import load_tokenizer
from tests.cli.conftest import Run, tiny_config


@pytest.fixture(scope="module")
def built() -> VLM:
    return make_model(tiny_config())


def test_an_answer_is_counted(built: VLM) -> None:
    timing = measure.answer(built, measure.make_question(built.config, 3), 5)
    assert (timing.num_tiles, timing.new_tokens) == (3, 5)
    assert timing.prompt_tokens == measure.TEXT_TOKENS + 3 * 4
    assert 0 < timing.vision_seconds < timing.first_token_seconds < timing.total_seconds
    assert timing.first_token_seconds == pytest.approx(timing.vision_seconds + timing.prompt_seconds)
    assert timing.seconds_per_tile == pytest.approx(timing.vision_seconds / 3)
    decoding = timing.total_seconds - timing.first_token_seconds
    assert timing.tokens_per_second == pytest.approx(4 / decoding)
    assert timing.peak_bytes > 50e6


def test_no_tiles_at_all(built: VLM) -> None:
    timing = measure.measure(built, 0, new_tokens=2, repeat=1)
    assert (timing.num_tiles, timing.prompt_tokens) == (0, measure.TEXT_TOKENS)


def test_medians_and_the_largest_peak(built: VLM) -> None:
    one = measure.answer(built, measure.make_question(built.config, 1), 2)
    slow = dataclasses.replace(one, total_seconds=9.0, peak_bytes=7)
    middle = measure.median([one, slow, slow], peak=11)
    assert (middle.total_seconds, middle.peak_bytes) == (9.0, 11)
    assert isinstance(middle, Timing)
    assert isinstance(middle.new_tokens, int)


def test_each_repetition_is_told(built: VLM) -> None:
    told: list[int] = []
    measure.measure(built, 1, new_tokens=2, repeat=2, after_each=told.append)
    assert told == [1, 2, 3], "one to warm up and two that count"


def test_peak_memory_rises_with_use() -> None:
    measure.reset_peak()
    before = measure.peak_bytes()
    # Fresh pages: the allocator might serve a tensor from memory that earlier tests left resident.
    with mmap.mmap(-1, 160_000_000) as block:
        block[::4096] = b"x" * len(block[::4096])
        assert measure.peak_bytes() >= before + 0.9 * 160_000_000


def test_questions_and_lengths_that_cannot_be_measured(built: VLM) -> None:
    question = measure.make_question(built.config, 1)
    with pytest.raises(InputError, match="2 new tokens"):
        measure.answer(built, question, 1)
    with pytest.raises(InputError, match="repeat"):
        measure.measure(built, 1, repeat=0)
    with pytest.raises(InputError, match="2 words"):
        measure.make_question(built.config, -1)


def test_random_weights_are_repeatable_and_in_range(built: VLM) -> None:
    again = make_model(tiny_config())
    other = make_model(tiny_config(), seed=1)
    assert all(torch.equal(a, b) for a, b in zip(built.parameters(), again.parameters(), strict=True))
    assert not torch.equal(built.llm.head.weight, other.llm.head.weight)
    assert make_model(tiny_config(), dtype=torch.bfloat16).llm.head.weight.dtype == torch.bfloat16


def test_the_tokenizer_of_bytes(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 512)
    tokenizer = load_tokenizer(tmp_path)
    text = "What is this? 这是什么"
    ids = tokenizer.encode(text).ids
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert all(tokenizer.token_id(token) is not None for token in ADDED_TOKENS)
    with pytest.raises(ConfigError, match="100 vocabulary rows"):
        write_tokenizer(tmp_path, 100)


def test_a_shape_of_the_zoo(run: Run) -> None:
    words = ("--tiny", "--tiles", "1,2", "--new-tokens", "4", "--repeat", "1", "--threads", "1")
    finished = run("bench", *words, "--json")
    assert (finished.status, finished.err) == (DONE, "")
    document = finished.json
    assert (document["model"], document["random_weights"]) == ("InternVL2_5-1B", True)
    assert [answer["num_tiles"] for answer in document["answers"]] == [1, 2]
    assert set(document["answers"][0]) == {field.name for field in dataclasses.fields(Timing)}
    assert document["loading"]["seconds"] > 0
    assert document["loading"]["peak_bytes"] > document["loading"]["weight_bytes"] > 0
    assert document["machine"]["threads"] == 1
    assert document["versions"]["torch"] == torch.__version__


def test_a_checkpoint_as_it_is(run: Run, model: str) -> None:
    finished = run("bench", "--model", model, "--tiles", "1", "--new-tokens", "3", "--repeat", "1")
    assert finished.status == DONE
    assert "its own weights" in finished.out
    assert "tokens/s" in finished.out


def test_tile_counts() -> None:
    assert parse_tiles("1, 7,0") == [1, 7, 0]
    with pytest.raises(InputError, match="--tiles"):
        parse_tiles("1,x")


def test_wrong_use_and_too_little_memory(run: Run, tower: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("bench", "--tiles", "-1").status == WRONG_USE
    assert run("bench", "--tiny", "--new-tokens", "1").status == WRONG_USE
    assert run("bench", "--tiny", "--threads", "0").status == WRONG_USE
    assert run("bench", "--model", "InternVL9").status == WRONG_USE
    assert run("bench", "--model", "InternViT-300M-448px").status == WRONG_USE
    assert run("bench", "--model", tower).status == WRONG_USE
    monkeypatch.setattr("internvl.cli.machine.total_memory", lambda: 1_000_000)
    small = run("bench", "--tiny", "--model", "InternVL2_5-78B", "--json")
    assert small.status == FAILED
    assert "1.0 MB of memory" in small.err
