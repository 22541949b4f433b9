"""What is told before anything runs is what then runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from internvl.cli.main import DONE, FAILED, WRONG_USE
from internvl.config import IMG_CONTEXT
from tests.cli.conftest import Run, save_noise


def test_the_same_counts_as_chat(run: Run, model: str, photo: str) -> None:
    words = (photo, "What is this?", "--model", model, "--json")
    explained = run("explain", *words)
    assert (explained.status, explained.err) == (DONE, "")
    usage = run("chat", *words, "--max-new-tokens", "4").json["usage"]
    document = explained.json
    assert document["prompt_tokens"] == usage["prompt_tokens"] == len(document["ids"])
    assert document["vision_tokens"] == usage["vision_tokens"] == document["prompt"].count(IMG_CONTEXT)
    assert document["tiles"] == usage["tiles"] == 3
    assert document["pictures"] == [
        {"width": 112, "height": 56, "grid": [2, 1], "tiles": 3, "vision_tokens": 12}
    ]
    assert document["max_new_tokens"] == 256


def test_no_weights_are_needed(run: Run, model: str, photo: str, tmp_path: Path) -> None:
    copy = tmp_path / "bare"
    shutil.copytree(model, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    finished = run("explain", photo, "Why?", "--model", str(copy))
    assert finished.status == DONE
    assert f"<img>{IMG_CONTEXT} x 12</img>\nWhy?" in finished.out
    for expected in ("112 x 56", "2 x 1", "2048 positions", "weight", "cache", "activation", "memory"):
        assert expected in finished.out


def test_a_model_that_is_not_here(run: Run, tmp_path: Path) -> None:
    picture = save_noise(tmp_path / "wide.png", 896, 448)
    finished = run("explain", picture, "Why?", "--model", "InternVL2_5-1B", "--json")
    assert finished.status == DONE
    document = finished.json
    assert document["pictures"][0]["tiles"] == 3
    assert document["vision_tokens"] == 3 * 256
    assert document["prompt"] is document["ids"] is document["prompt_tokens"] is None
    half = run("explain", picture, "--model", "InternVL2_5-1B", "--json", "--dtype", "bfloat16").json
    assert 2 * half["memory"]["weight_bytes"] == document["memory"]["weight_bytes"] > 3.5e9
    table = run("explain", picture, "Why?", "--model", "InternVL2_5-1B")
    assert "768 vision tokens" in table.out
    assert "internvl pull InternVL2_5-1B" in table.err


def test_limits_and_lengths(run: Run, model: str, photo: str) -> None:
    words = ("explain", photo, "Why?", "--model", model, "--json")
    assert run(*words, "--max-tiles", "1").json["tiles"] == 1
    for name in (model, "InternVL2_5-1B"):
        shared = run("explain", photo, photo, "Why?", "--model", name, "--json", "--total-tiles", "2").json
        assert [picture["tiles"] for picture in shared["pictures"]] == [1, 1]
    short, long = (run(*words, "--max-new-tokens", length).json["memory"] for length in ("1", "1001"))
    # 2 layers of 2 key-value heads of width 8, keys and values, 4 bytes each
    assert long["cache_bytes"] - short["cache_bytes"] == 1000 * 2 * 2 * 2 * 8 * 4
    overflow = run("explain", photo, "Why?", "--model", model, "--max-new-tokens", "5000")
    assert overflow.status == DONE
    assert "are needed: lower --max-tiles" in overflow.out


def test_far_too_long_a_text_is_not_read(run: Run, model: str, photo: str) -> None:
    finished = run("explain", photo, f"Why?{' ' * 120_000}x", "--model", model)
    assert (finished.status, finished.out) == (WRONG_USE, "")
    assert re.search(r"at least \d{4,} tokens and the model has 2048 positions", finished.err)


def test_wrong_use_and_failures(run: Run, model: str, tower: str, tmp_path: Path) -> None:
    assert run("explain", "--model", model).status == WRONG_USE
    assert run("explain", "Why?", "--model", model, "--max-new-tokens", "0").status == WRONG_USE
    assert run("explain", "missing.png", "Why?", "--model", model).status == WRONG_USE
    assert run("explain", "Why?", "--model", tower).status == WRONG_USE
    assert run("explain", "Why?", "--model", "InternViT-300M-448px").status == WRONG_USE
    guessed = run("explain", "Why?", "--model", "InternVL2_5-1")
    assert guessed.status == WRONG_USE
    assert "did you mean InternVL2_5-1B" in guessed.err
    assert run("explain", "Why?", "--model", str(tmp_path)).status == FAILED
