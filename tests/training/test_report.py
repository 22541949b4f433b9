"""The report says what the log says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from internvl.training.log import Log
from internvl.training.recipe import AdamW, Recipe
from internvl.training.recipe_file import load
from internvl.training.report import write_report

RECIPE = Recipe(name="a run", params=((".*", AdamW(lr=1e-3)),), steps=30)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    log = Log(tmp_path)
    for step in range(1, 31):
        log.write(step=step, loss=4.0 / step, seconds=120.0, tokens_per_second=100.0, data_wait=0.25)
        if step % 10 == 0:
            log.write(step=step, **{"val_loss": 1.0 / step, "val_loss/a|b": 2.0 / step})
    log.write(step=30, loss="nan", event="not finite")
    log.write(step=30, event="finished")
    log.close()
    return tmp_path


def test_the_report_holds_facts_numbers_measurements_and_the_recipe(folder: Path) -> None:
    text = write_report(folder, RECIPE, {"reason": "finished", "best": 0.25}).read_text(encoding="utf-8")
    assert "# Run `a run`" in text
    assert "| reason | finished |" in text
    assert "| best | 0.2500 |" in text
    assert "| hours of training | 1.00 |" in text
    assert "| tokens a second | 100.0 |" in text
    assert "| time spent waiting for data | 25.0% |" in text
    assert "4.0000 at step 1, 0.1333 at step 30; 0.1380 on average over the last 3 logged rows." in text
    assert "| step | val_loss | val_loss/a\\|b |" in text
    assert "| 20 | 0.0500 | 0.1000 |" in text
    assert "* step 30: not finite\n* step 30: finished" in text
    assert load(json.loads(text.split("```json\n")[1].split("```")[0])) == RECIPE
    assert "Bad samples" not in text


def test_why_other_processes_failed_stands_with_the_events(folder: Path) -> None:
    log = Log(folder / "rank-1")
    log.write(step=2, event="resumed")
    log.write(step=30, event="failed: no\nroom")
    log.close()
    text = write_report(folder, RECIPE, {}).read_text(encoding="utf-8")
    assert "* step 30: finished\n* rank-1, step 30: failed: no room\n" in text
    assert "resumed" not in text


def test_the_plot_is_a_picture(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    assert "![loss over steps](loss.png)" in write_report(folder, RECIPE, {}).read_text(encoding="utf-8")
    with Image.open(folder / "loss.png") as picture:
        assert picture.format == "PNG"
        colours = picture.convert("RGB").getcolors(1 << 20)
    assert colours is not None
    assert len(colours) > 20  # lines of several colours, not an empty page
    assert not list(folder.glob("*.partial"))


def test_a_single_row_is_seen_in_the_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    log = Log(tmp_path)
    log.write(step=9, loss=5.9)
    log.close()
    write_report(tmp_path, RECIPE, {})
    with Image.open(tmp_path / "loss.png") as picture:
        middle = picture.convert("RGB").crop((400, 200, 600, 320))  # without the legend
    assert np.ptp(np.asarray(middle, dtype=int), axis=-1).max() > 50  # a colour, not white and grey


def test_without_matplotlib_the_report_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    text = write_report(folder, RECIPE, {}).read_text(encoding="utf-8")
    assert 'pip install "internvl[train]"' in text
    assert not (folder / "loss.png").exists()


def test_bad_samples_are_counted_by_kind(folder: Path) -> None:
    """A record that came in three epochs once; a line that a crash cut short not at all."""
    errors = {"a": "ImageError", "b": "InputError", "c": "ImageError"}
    rows = [json.dumps({"key": key, "error": error}) for key, error in errors.items()] * 3
    (folder / "bad_samples.jsonl").write_text("\n".join([*rows, "torn"]) + "\n")
    text = write_report(folder, RECIPE, {}).read_text(encoding="utf-8")
    assert "3 records could not be used" in text
    assert "| ImageError | 2 |" in text


def test_many_measurements_are_shortened(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for step in range(1, 31):
        log.write(step=step, val_loss=float(step))
    log.close()
    text = write_report(tmp_path, RECIPE, {}).read_text(encoding="utf-8")
    assert "The first 10 are in the log." in text
    assert "| 10 |" not in text
    assert "| 11 | 11.0000 |" in text


@pytest.mark.parametrize("has_log", [False, True])
def test_a_run_that_logged_nothing_has_a_report(tmp_path: Path, has_log: bool) -> None:
    if has_log:
        Log(tmp_path).close()
    text = write_report(tmp_path, RECIPE, {"reason": "interrupted"}).read_text(encoding="utf-8")
    assert "No step was logged." in text
    assert not (tmp_path / "loss.png").exists()
