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


def test_parts_and_sizes(run: Run, model: str, photo: str, tmp_path: Path) -> None:
    for part in ("vit", "llm", "projector"):
        assert run("convert", model, str(tmp_path / part), "--part", part).status == DONE
    features = ("features", photo, "--model", str(tmp_path / "vit"), "--output", str(tmp_path / "f.npz"))
    assert run(*features).status == DONE
    assert "mlp1" not in "".join(load_file(tmp_path / "projector" / "model.safetensors"))
    words = ("--replace-llm", str(tmp_path / "llm"), "--image-size", "84", "--vocabulary", "520")
    assert run("convert", model, str(tmp_path / "other"), *words).status == DONE
    told = run("chat", "Hi", "--model", str(tmp_path / "other"), "--max-new-tokens", "2")
    assert told.status == DONE
    before, after = (load_file(Path(path) / "model.safetensors") for path in (model, tmp_path / "other"))
    differing = {name for name, value in before.items() if not value.equal(after[name])}
    assert differing == {
        "vision_model.embeddings.position_embedding",
        "language_model.model.embed_tokens.weight",
        "language_model.lm_head.weight",
    }
    assert run("convert", model, str(tmp_path / "a"), "--image-size", "85").status == WRONG_USE
    assert run("convert", model, str(tmp_path / "a"), "--vocabulary", "5").status == WRONG_USE
