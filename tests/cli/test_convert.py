"""Between layouts and back, without a bit changed."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from internvl.cli.main import DONE, FAILED, WRONG_USE
from tests.cli.conftest import Run


def test_there_and_back(run: Run, model: str, tmp_path: Path) -> None:
    there = run("convert", model, str(tmp_path / "hf"), "--layout", "hf", "--json")
    assert there.status == DONE
    assert there.json["layout"] == "hf"
    assert there.json["files"]["config.json"] > 0
    back = run("convert", str(tmp_path / "hf"), str(tmp_path / "official"), "--layout", "official")
    assert back.out == f"{tmp_path / 'official'}\n"
    before, after = (load_file(Path(path) / "model.safetensors") for path in (model, tmp_path / "official"))
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)
    assert run("info", str(tmp_path / "hf"), "--json").json["layout"] != "official"


def test_shards(run: Run, model: str, tmp_path: Path) -> None:
    document = run("convert", model, str(tmp_path / "parts"), "--shard-gb", "0.0005", "--json").json
    assert sum(name.endswith(".safetensors") for name in document["files"]) > 1
    assert run("chat", "Hi", "--model", str(tmp_path / "parts"), "--max-new-tokens", "2").status == DONE


def test_failures_and_wrong_use(run: Run, model: str, tmp_path: Path) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "mine.txt").write_text("mine")
    refused = run("convert", model, str(used))
    assert (refused.status, refused.out) == (FAILED, "")
    assert (used / "mine.txt").read_text() == "mine"
    refused = run("convert", model, str(used), "--overwrite")
    assert (refused.status, (used / "mine.txt").read_text()) == (FAILED, "mine")
    (used / "config.json").write_text("{}")
    assert run("convert", model, str(used), "--overwrite").status == DONE
    assert run("convert", str(tmp_path / "nothing"), str(tmp_path / "a")).status == WRONG_USE
    assert run("convert", "InternVL2_5-1B", str(tmp_path / "a")).status == FAILED
    assert run("convert", model, str(tmp_path / "a"), "--layout", "timm").status == WRONG_USE
    assert run("convert", model, str(tmp_path / "a"), "--family", "gpt").status == WRONG_USE
    assert run("convert", model, str(tmp_path / "a"), "--shard-gb", "0").status == WRONG_USE
    assert not (tmp_path / "a").exists()
