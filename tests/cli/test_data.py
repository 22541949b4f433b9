"""The check before a run: what it shows, what it finds, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from internvl.cli.main import DONE, FAILED, WRONG_USE
from tests.cli.conftest import Run, save_noise
from tests.conftest import GoldenFixtures


@pytest.fixture(autouse=True)
def _known_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """FLOP a second; measuring takes seconds."""
    monkeypatch.setattr("internvl.cli.data.measure_rate", lambda recipe, device: 1e6)


def record(image: str | None = "photo.png", answer: str = "A dog.") -> dict[str, Any]:
    mark = "" if image is None else "<image>\n"
    turns = [{"from": "human", "value": f"{mark}What?"}, {"from": "gpt", "value": answer}]
    return {"image": image, "conversations": turns}


@pytest.fixture
def meta(tmp_path: Path) -> Path:
    """Two good sets: 5 rows with a picture of 3 tiles, and 4 of words."""
    save_noise(tmp_path / "photo.png", 112, 56)
    write(tmp_path / "photos.jsonl", [record()] * 5)
    write(tmp_path / "words.jsonl", [record(None)] * 4)
    sets = {name: {"root": "", "annotation": f"{name}.jsonl"} for name in ("photos", "words")}
    path = tmp_path / "meta.json"
    path.write_text(json.dumps(sets))
    return path


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_good_data(run: Run, model: str, meta: Path) -> None:
    finished = run("data", "check", str(meta), "--model", model, "--json")
    assert finished.status == DONE
    document = finished.json
    assert document["bad"] == []
    photos, words = document["sets"]
    assert (photos["name"], photos["num_rows"], photos["num_bad"]) == ("photos", 5, 0)
    assert photos["tiles"]["histogram"] == [[4, 5]]
    assert (photos["tiles"]["total"], words["tiles"]["total"]) == (15, 0)
    assert 0 < words["trained"]["total"] < words["tokens"]["total"] < photos["tokens"]["total"]
    assert (document["epoch"]["num_records"], document["epoch"]["num_steps"]) == (9, 2)
    made = document["estimate"]
    assert made["seconds"] == pytest.approx(2 * made["flops"] / 1e6)
    assert made["memory"] > 16 * sum(path.stat().st_size for path in Path(model).glob("*.safetensors")) / 4
    assert "sample" not in document


def test_the_table(run: Run, model: str, meta: Path) -> None:
    finished = run("data", "check", str(meta), "--model", model, "--packs", "1", "--max-tokens", "400")
    assert finished.status == DONE
    for expected in (
        "data set",
        "photos",
        "3 3 3",
        "3-4",
        "#####",
        "packs hold",
        "steps",
        "on this processor",
    ):
        assert expected in finished.out
    assert "0 of 9 records cannot be used" in finished.err


def test_broken_data(run: Run, model: str, meta: Path, tmp_path: Path) -> None:
    rows = [record(), record("missing.png"), record(answer="no " * 500), record(answer="")]
    write(tmp_path / "photos.jsonl", rows)
    listed = tmp_path / "broken.jsonl"
    words = ("data", "check", str(meta), "--model", model, "--max-length", "400")
    finished = run(*words, "--out", str(listed))
    assert finished.status == FAILED
    assert "3 of 8 records cannot be used" in finished.err
    assert f"photos:1 ({tmp_path / 'photos.jsonl'}, line 2): ImageError: no such file" in finished.out
    rows = [json.loads(line) for line in listed.read_text().splitlines()]
    assert [row["key"] for row in rows] == ["photos:1", "photos:2", "photos:3"]
    document = run(*words, "--json")
    assert document.status == FAILED
    assert document.json["bad"] == rows
    assert not list(tmp_path.glob("*.partial"))


def test_only_the_first_ones_are_shown(run: Run, model: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [record("missing.png")] * 25)
    finished = run("data", "check", path, "--model", model)
    assert finished.status == FAILED
    assert finished.out.count("no such file") == 20
    assert "5 more; --out FILE lists all of them" in finished.err


def test_a_quick_check_reads_headers(run: Run, model: str, meta: Path, tmp_path: Path) -> None:
    content = (tmp_path / "photo.png").read_bytes()
    (tmp_path / "photo.png").write_bytes(content[: len(content) // 2])
    words = ("data", "check", str(meta), "--model", model)
    assert run(*words, "--quick").status == DONE
    assert run(*words, "--workers", "2").status == FAILED


def test_pairs(run: Run, tmp_path: Path, golden_dir: GoldenFixtures) -> None:
    """The model decides what records are: for InternVL-G pictures with captions."""
    save_noise(tmp_path / "photo.png", 60, 40)
    good = {"image": "photo.png", "en": ["A dog.", "A dog runs."], "zh": ["狗。"]}
    bad = [{**good, "image": "missing.png"}, {**good, "en": ["dog " * 200]}, {"image": "photo.png"}]
    path = write(tmp_path / "pairs.jsonl", [good] * 5 + bad)
    words = ("data", "check", path, "--model", str(golden_dir / "internvl_14b"), "--examples", "2")
    document = run(*words, "--json")
    assert document.status == FAILED
    assert [row["key"] for row in document.json["bad"]] == ["pairs:5", "pairs:6", "pairs:7"]
    languages = {one["language"]: one for one in document.json["languages"]}
    assert (languages["en"]["num_rows"], languages["en"]["num_captions"]) == (5, 10)
    assert languages["zh"]["num_captions"] == 5
    assert (document.json["epoch"]["num_steps"], document.json["epoch"]["num_tiles"]) == (3, 5)
    assert document.json["estimate"]["memory"] > 0
    finished = run(*words)
    assert "captions and their tokens" in finished.out
    assert "the limit is 80" in finished.out
    assert "3 of 8 records cannot be used" in finished.err
    write(tmp_path / "pairs.jsonl", [good] * 5)
    assert run(*words, "--language", "zh").status == DONE


def test_records_that_the_objective_cannot_use_are_bad(run: Run, model: str, tmp_path: Path) -> None:
    preference = {"question": "What?", "chosen": "A dog.", "rejected": "A cat."}
    path = write(tmp_path / "rows.jsonl", [preference, record(None)])
    for objective, bad in (("NextToken", [0]), ("SelfCritical", [0]), ("Preference", [1]), (None, [])):
        words = () if objective is None else ("--objective", objective)
        finished = run("data", "check", path, "--model", model, "--json", *words)
        assert [one["key"] for one in finished.json["bad"]] == [f"rows:{number}" for number in bad]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("{}", "names no data sets"),
        ('{"a": {"annotation": "missing.jsonl"}}', "missing.jsonl"),
        ('{"a": {"root": "."}}', "'annotation' must be a path"),
        ('{"a": {"annotation": "s3://bucket/a.jsonl"}}', "not on this machine"),
        ('{"a": {"annotation": "empty.jsonl"}}', "no rows"),
        ('{"a": {"annotation": "words.jsonl", "repeat_time": -1}}', "repeat_time"),
        ('{"a": {"annotation": "words.jsonl", "repeat": 2}}', "unknown field 'repeat'"),
        ('{"a": 5}', "expected an object"),
    ],
)
def test_a_broken_meta_file(run: Run, model: str, meta: Path, content: str, message: str) -> None:
    (meta.parent / "empty.jsonl").touch()
    meta.write_text(content)
    finished = run("data", "check", str(meta), "--model", model)
    assert finished.status == WRONG_USE
    assert message in finished.err
    assert "Traceback" not in finished.err


def test_wrong_use(run: Run, model: str, tower: str, meta: Path) -> None:
    words = ("data", "check", str(meta))
    for more, message in (
        (("--model", model, "--workers", "0"), "--workers counts from 1"),
        (("--model", model, "--examples", "2", "--packs", "2"), "one of them"),
        (("--model", tower), "does not chat"),
        (("--model", "no-such-model"), "no-such-model"),
    ):
        finished = run(*words, *more)
        assert finished.status == WRONG_USE, more
        assert message in finished.err
    assert run("data", "look", str(meta)).status == WRONG_USE
    assert run("data", "check", "missing.json", "--model", model).status == WRONG_USE
