"""Pairs of answers with stored log-probabilities, ready for a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from internvl.cli.main import DONE, FAILED, WRONG_USE
from internvl.data.meta import open_data
from internvl.training.reference import STORED
from tests.cli.conftest import Run, save_noise


@pytest.fixture
def meta(tmp_path: Path) -> Path:
    save_noise(tmp_path / "photo.png", 56, 56)
    pair = {"image": "photo.png", "question": "What is this?", "chosen": "A dog.", "rejected": "Two cats."}
    (tmp_path / "pairs.jsonl").write_text(
        json.dumps(pair) + "\n" + json.dumps(pair | {"chosen": "Noise."}) + "\n"
    )
    path = tmp_path / "pairs.json"
    entry = {"annotation": "pairs.jsonl", "repeat_time": 2, "max_dynamic_patch": 1}
    path.write_text(json.dumps({"pairs": entry}))
    return path


def test_pairs_are_scored_and_still_found(run: Run, model: str, meta: Path, tmp_path: Path) -> None:
    out = tmp_path / "scored"
    assert run("data", "reference", str(meta), "--model", model, "--out", str(out)).status == DONE
    (dataset,) = open_data(out / "meta.json")
    assert (dataset.repeat, dataset.max_tiles, len(dataset.source)) == (2, 1, 2)
    rows = [dataset.source.row(index) for index in range(2)]
    assert all(row[key] < 0 for row in rows for key in STORED)
    assert rows[0][STORED[0]] != rows[1][STORED[0]]
    assert rows[0][STORED[1]] == pytest.approx(rows[1][STORED[1]])
    assert (dataset.root / rows[0]["image"]).is_file()


def test_rows_that_are_no_pairs_are_told(run: Run, model: str, meta: Path, tmp_path: Path) -> None:
    row = {"image": "photo.png", "question": "What?", "answer": "A dog."}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    finished = run("data", "reference", str(meta), "--model", model, "--out", str(tmp_path / "scored"))
    assert finished.status == FAILED
    assert "1 answers" in finished.out


def test_a_folder_is_needed(run: Run, model: str, meta: Path) -> None:
    assert run("data", "reference", str(meta), "--model", model).status == WRONG_USE
