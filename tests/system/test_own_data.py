"""From a folder of one's own pictures to a model of one's own: the four commands of docs/how-to/train.md."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import internvl
from internvl import ChatModel
from internvl.cli.main import main

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 70, 220), "yellow": (240, 210, 40)}
QUESTION = "What colour is it?"
STEPS = ("--set", "steps=3", "--set", "epochs=none", "--set", "data.batching.examples=2")
FASTER = ("--set", "params.0.1.lr=0.02", "--set", "schedule.kind=constant", "--threads", "1")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user works: photos, and two tables of questions and answers."""
    (tmp_path / "photos").mkdir()
    for name, rgb in COLOURS.items():
        Image.new("RGB", (120, 90), rgb).save(tmp_path / "photos" / f"{name}.png")
    for table, names in (("my.csv", list(COLOURS)), ("my_test.csv", ["red", "blue"])):
        with (tmp_path / table).open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["image", "question", "answer"])
            rows.writerows([f"photos/{name}.png", QUESTION, name] for name in names)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["internvl2_5_qwen2", "internvl1_5_internlm2"])
def test_four_commands(name: str, golden_dir: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = str(golden_dir / name)

    def call(*words: str) -> str:
        capsys.readouterr()
        status = main(words)
        captured = capsys.readouterr()
        assert status == 0, captured.err
        return captured.out

    trained = call(
        "train", "lora", "--data", "my.csv", "--model", base, "--out", "runs/mine", *STEPS, *FASTER
    )
    assert trained == "runs/mine/adapter\n"
    measured = ("--metric", "loss", "--metric", "exact", "--threads", "1", "--max-new-tokens", "4", "--json")
    before = json.loads(call("eval", base, "my_test.csv", *measured))
    asked = ("--adapter", "runs/mine/adapter", "--out", "answers.jsonl")
    after = json.loads(call("eval", base, "my_test.csv", *measured, *asked))
    assert after["sets"][0]["scores"]["loss"] < 0.9 * before["sets"][0]["scores"]["loss"]
    assert after["sets"][0]["questions"] == 2
    assert call("merge", base, "runs/mine/adapter", "my-model") == "my-model\n"
    answers = [json.loads(line) for line in Path("answers.jsonl").read_text(encoding="utf-8").splitlines()]
    words = ("--threads", "1", "--max-new-tokens", "4", "--json")
    said = json.loads(call("chat", "my-model", "photos/red.png", QUESTION, *words))
    assert said["text"] == answers[0]["answer"]
    assert said["model"] == "my-model"
    assert differs(internvl.load(base), internvl.load("my-model"))


GUIDE = (Path(__file__).parents[2] / "docs" / "how-to" / "train.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\n(.*?)```", GUIDE, flags=re.DOTALL))


@pytest.mark.parametrize("name", FILES)
def test_the_forms_of_the_guide(
    name: str, golden_dir: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every data file that the guide shows can be trained on and asked."""
    for number in (1, 2):
        Image.new("RGB", (60, 40), (90 * number, 0, 0)).save(folder / "photos" / f"000{number}.jpg")
    for path, text in FILES.items():
        (folder / path).write_text(text, encoding="utf-8")
    data = "photos" if name.endswith("captions.txt") else name
    base = str(golden_dir / "internvl2_5_qwen2")
    assert main(["data", "check", data, "--model", base]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main(["eval", base, data, "--max-new-tokens", "2", "--threads", "1", "--json"]) == 0
    sets = json.loads(capsys.readouterr().out)["sets"]
    assert [one["bad"] for one in sets] == [0] * len(sets)
    assert len(FILES) == 5


def differs(base: object, merged: object) -> bool:
    assert isinstance(base, ChatModel)
    assert isinstance(merged, ChatModel)
    return not torch.equal(base.logits([5, 6, 7]), merged.logits([5, 6, 7]))


def test_a_table_with_broken_rows_ends_in_the_report(
    golden_dir: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture that is missing, one that is cut off, a question without an answer."""
    base = str(golden_dir / "internvl2_5_qwen2")
    whole = (folder / "photos" / "red.png").read_bytes()
    (folder / "photos" / "cut.png").write_bytes(whole[: len(whole) // 2])
    with (folder / "my.csv").open("a", encoding="utf-8") as file:
        file.write(
            f"photos/none.png,{QUESTION},red\nphotos/cut.png,{QUESTION},red\nphotos/red.png,{QUESTION},\n"
        )
    assert main(["data", "check", "my.csv", "--model", base]) == 1
    checked = capsys.readouterr()
    assert "3 of 7 records cannot be used" in checked.err
    words = ("--model", base, "--out", "runs/mine", *STEPS, "--set", "steps=4", "--threads", "1")
    assert main(["train", "lora", "--data", "my.csv", *words]) == 1
    assert "records cannot be used, more than 10%" in capsys.readouterr().err
    tolerant = ("--resume", "--set", "data.bad_samples.limit=0.5")
    assert main(["train", "lora", "--data", "my.csv", *words, *tolerant]) == 0
    told = f"3 records could not be used, see {Path('runs/mine/bad_samples.jsonl')}"
    assert told in capsys.readouterr().err
    reported = (folder / "runs" / "mine" / "bad_samples.jsonl").read_text(encoding="utf-8").splitlines()
    found = {json.loads(line)["key"] for line in reported}
    assert found == {"my:4", "my:5", "my:6"}


def test_a_start_without_its_data_does_not_take_the_folder(
    golden_dir: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistyped name, then a table with a column nobody knows, then the right one: the same command."""
    base = str(golden_dir / "internvl2_5_qwen2")
    (folder / "wrong.csv").write_text("image,frage,antwort\nphotos/red.png,Was?,rot\n", encoding="utf-8")
    words = ("--model", base, "--out", "runs/mine", *STEPS, "--threads", "1")
    assert main(["train", "lora", "--data", "my.cvs", *words]) == 2
    assert "my.cvs" in capsys.readouterr().err
    assert main(["train", "lora", "--data", "wrong.csv", *words]) == 1
    assert "nothing to learn in the keys 'image', 'frage', 'antwort'" in capsys.readouterr().err
    assert main(["train", "lora", "--data", "my.csv", *words]) == 0
    assert not (folder / "runs" / "mine" / "bad_samples.jsonl").exists()
    assert main(["train", "lora", "--data", "my.csv", *words]) == 1
    assert "holds a run already" in capsys.readouterr().err
