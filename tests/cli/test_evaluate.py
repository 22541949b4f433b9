"""`internvl eval`: the answers are those of chat, broken records are counted, and a run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import internvl
from internvl import ChatModel
from internvl.adapt.lora import LoRA, add_adapters
from internvl.checkpoints.adapters import save_adapters
from internvl.cli.main import FAILED, WRONG_USE
from internvl.evaluation.scores import cider_d
from internvl.training import answers
from tests.cli.conftest import Run, save_noise

WORDS = ("--max-new-tokens", "6", "--threads", "1")

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*rows: dict[str, Any] | str, name: str = "test.jsonl") -> str:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    return [Path(save_noise(tmp_path / f"{n}.png", 60 + 60 * n, 56, n)).name for n in range(3)]


def read(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ["internvl2_5_qwen2", "internvl1_5_internlm2"])
def test_answers_are_those_of_chat(
    run: Run, golden_dir: Any, name: str, write: Write, pictures: list[str], tmp_path: Path
) -> None:
    """Questions about one picture, two, none, a second round, several answers: whatever the batch is."""
    a, b, c = pictures
    model = str(golden_dir / name)
    data = write(
        {"image": a, "question": "What is this?", "answer": "noise"},
        {"images": [b, c], "question": "<image> or <image>?", "answers": ["the first", "1"]},
        {"question": "Hello!", "answer": "Hi!"},
        {"image": c, "pairs": [["What?", "this"], ["Where?", "here"]]},
        {"messages": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "1"}] * 2},
        {"image": b, "caption": "a picture"},
    )
    out = tmp_path / "answers.jsonl"
    words = ("--out", str(out), "--batch", "3", "--json", "--metric", "exact", "--metric", "cider")
    finished = run("eval", model, data, *WORDS, *words)
    assert finished.status == 0, finished.err
    loaded = internvl.load(model)
    assert isinstance(loaded, ChatModel)
    asked: list[tuple[str, list[str], list[tuple[str, str]]]] = [
        ("What is this?", [a], []),
        ("<image> or <image>?", [b, c], []),
        ("Hello!", [], []),
        ("What?", [c], []),
        ("Where?", [c], []),
        ("One?", [], []),
        ("One?", [], [("One?", "1")]),
        ("Provide a one-sentence caption for the provided image.", [b], []),
    ]
    expected = [
        loaded.chat(
            text, images=[tmp_path / one for one in images], history=history or None, max_new_tokens=6
        ).text
        for text, images, history in asked
    ]
    rows = read(out)
    assert [row["answer"] for row in rows] == expected
    assert len(set(expected)) > 3
    keys = ["0", "1", "2", "3#0", "3#1", "4#0", "4#1", "5"]
    assert [row["key"] for row in rows] == [f"test:{key}" for key in keys]
    assert rows[1]["references"] == ["the first", "1"]
    (one,) = finished.json["sets"]
    references = [row["references"] for row in rows]
    assert one["scores"] == {"exact": 0.0, "cider": pytest.approx(cider_d(expected, references)[0])}
    assert (one["records"], one["questions"], one["bad"]) == (6, 8, 0)


def test_right_answers_count(run: Run, model: str, write: Write, pictures: list[str], tmp_path: Path) -> None:
    loaded = internvl.load(model)
    assert isinstance(loaded, ChatModel)
    said = loaded.chat("What is this?", images=tmp_path / pictures[0], max_new_tokens=6).text
    row = {"image": pictures[0], "question": "What is this?"}
    data = write({**row, "answers": ["no", f" {said} "]}, {**row, "answer": "something else"})
    finished = run("eval", model, data, *WORDS)
    assert finished.out.splitlines()[-1].split() == ["test", "2", "0", "2", "0.5000"]


def test_broken_records_are_counted_and_named(
    run: Run, model: str, write: Write, pictures: list[str]
) -> None:
    good = {"image": pictures[0], "question": "What?", "answer": "this"}
    data = write(good, {**good, "image": "none.png"}, "{", {"text": "learnt whole"})
    finished = run("eval", model, data, *WORDS, "--metric", "exact", "--metric", "loss", "--json")
    assert finished.status == 0
    (one,) = finished.json["sets"]
    assert (one["records"], one["questions"], one["bad"]) == (4, 1, 3)
    assert sum(one["kinds"].values()) == 3
    assert "none.png" in finished.err
    assert "test.jsonl, line 3" in finished.err
    assert "3 of 4 records could not be used" in finished.err
    assert one["scores"]["loss"] > 0


def test_nothing_that_can_be_used_is_a_failure(run: Run, model: str, write: Write) -> None:
    data = write({"image": "none.png", "question": "What?", "answer": "this"})
    finished = run("eval", model, data, *WORDS, "--json", "--metric", "exact", "--metric", "loss")
    assert finished.status == FAILED
    assert finished.json["sets"][0]["scores"] == {"exact": None, "loss": None}
    assert "1 of 1 records" in finished.err


def test_a_run_goes_on_where_it_was(
    run: Run, model: str, write: Write, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"image": name, "question": f"What is {n}?", "answer": "x"} for n, name in enumerate(pictures)]
    data, out = write(*rows), tmp_path / "answers.jsonl"
    words = (model, data, *WORDS, "--batch", "1", "--out", str(out), "--json")
    texts = answers.Answers.texts
    calls: list[int] = []

    def stop_at_the_third(self: answers.Answers, asked: list[Any]) -> list[str]:
        calls.append(len(asked))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return texts(self, asked)

    monkeypatch.setattr(answers.Answers, "texts", stop_at_the_third)
    assert run("eval", *words).status == 130
    assert not out.exists()
    assert len(read(f"{out}.partial")) == 2
    finished = run("eval", *words)
    assert finished.json["sets"][0]["known"] == 2
    assert sum(calls[3:]) == 1
    whole = read(out)
    assert [row["key"] for row in whole] == ["test:0", "test:1", "test:2"]
    assert run("eval", *words).json["sets"][0]["known"] == 3
    assert read(out) == whole
    other = run("eval", model, data, "--max-new-tokens", "5", "--out", str(out))
    assert other.status == WRONG_USE
    assert "other settings" in other.err


def test_examples_are_spread_over_each_data_set(
    run: Run, model: str, write: Write, pictures: list[str], tmp_path: Path
) -> None:
    table = [f"{pictures[0]},Is it {n}?,no" for n in range(10)]
    write("image,question,answer", *table, name="a.csv")
    write({"question": "Hello!", "answer": "Hi!"}, name="b.jsonl")
    meta = {name: {"annotation": file} for name, file in (("first", "a.csv"), ("second", "b.jsonl"))}
    data, out = write(json.dumps(meta), name="meta.json"), tmp_path / "answers.jsonl"
    finished = run("eval", model, data, *WORDS, "--examples", "4", "--out", str(out), "--json")
    assert [row["key"] for row in read(out)] == ["first:0", "first:2", "first:5", "first:7", "second:0"]
    assert [(one["name"], one["questions"]) for one in finished.json["sets"]] == [("first", 4), ("second", 1)]


def test_captions_are_those_of_the_language(
    run: Run, model: str, write: Write, pictures: list[str], tmp_path: Path
) -> None:
    data, out = (
        write({"image": pictures[0], "en": ["Red.", "A square."], "zh": ["红色"]}),
        tmp_path / "a.jsonl",
    )
    assert run("eval", model, data, *WORDS, "--language", "zh", "--out", str(out)).status == 0
    assert [row["references"] for row in read(out)] == [["红色"]]


def test_of_preferences_the_chosen_answer_counts(
    run: Run, model: str, write: Write, pictures: list[str]
) -> None:
    row = {"image": pictures[0], "question": "What?"}
    words = (*WORDS, "--metric", "exact", "--metric", "loss", "--json")
    sets = [
        run("eval", model, write({**row, **more}, name="rows.jsonl"), *words).json["sets"]
        for more in ({"chosen": "this", "rejected": "something else"}, {"answer": "this"})
    ]
    assert sets[0] == sets[1]


def test_adapters_and_tiles_change_the_answer(
    run: Run, model: str, write: Write, pictures: list[str], tmp_path: Path
) -> None:
    loaded = internvl.load(model)
    assert isinstance(loaded, ChatModel)
    add_adapters(loaded.vlm, ((r"llm\..*", LoRA(rank=2, dropout=0.9)),), torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name, parameter in loaded.vlm.named_parameters():
            if name.endswith("lora_up"):
                parameter.normal_(generator=torch.Generator().manual_seed(2))
    save_adapters(loaded.vlm, tmp_path / "adapter")
    loaded.vlm.eval()
    expected = loaded.chat("What?", images=tmp_path / pictures[2], max_tiles=1, max_new_tokens=6).text
    data = write({"image": pictures[2], "question": "What?", "answer": "x"})
    out = tmp_path / "answers.jsonl"
    words = ("--adapter", str(tmp_path / "adapter"), "--max-tiles", "1")
    assert run("eval", model, data, *WORDS, *words, "--out", str(out)).status == 0
    assert read(out)[0]["answer"] == expected
    assert run("eval", model, data, *WORDS, "--out", str(out)).status == WRONG_USE


@pytest.mark.parametrize("change", [{"lora_alpha": 1.0}, {"use_rslora": True}])
def test_answers_of_other_scales_of_an_adapter_are_not_taken(
    run: Run, model: str, write: Write, tmp_path: Path, change: dict[str, Any]
) -> None:
    loaded = internvl.load(model)
    assert isinstance(loaded, ChatModel)
    add_adapters(loaded.vlm, ((r"llm\..*", LoRA(rank=2)),), torch.Generator().manual_seed(1))
    save_adapters(loaded.vlm, tmp_path / "adapter")
    data, out = write({"question": "Hello!", "answer": "Hi!"}), tmp_path / "answers.jsonl"
    words = ("eval", model, data, *WORDS, "--adapter", str(tmp_path / "adapter"), "--out", str(out))
    assert run(*words).status == 0
    assert run(*words).status == 0
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    other = run(*words)
    assert (other.status, "other settings" in other.err) == (WRONG_USE, True)


@pytest.mark.parametrize("quantize", [(), ("--quantize", "int8")])
def test_answers_of_other_weights_are_not_taken(
    run: Run, model: str, write: Write, tmp_path: Path, quantize: tuple[str, ...]
) -> None:
    loaded = internvl.load(model)
    assert isinstance(loaded, ChatModel)
    with torch.no_grad():
        loaded.vlm.get_parameter("llm.layers.0.mlp.down.weight").mul_(-1)
    internvl.save(loaded, tmp_path / "other")
    data, out = write({"question": "Hello!", "answer": "Hi!"}), tmp_path / "answers.jsonl"
    words = (data, *WORDS, *quantize, "--out", str(out))
    assert run("eval", model, *words).status == 0
    assert run("eval", model, *words).status == 0
    other = run("eval", str(tmp_path / "other"), *words)
    assert other.status == WRONG_USE
    assert "another model" in other.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--examples", "0"), "--examples counts from 1"),
        (("--batch", "0"), "--batch counts from 1"),
        (("--metric", "loss", "--out", "a.jsonl"), "the loss alone needs none"),
        (("--metric", "bleu"), "bleu"),
        (("--max-tiles", "0"), "counts from 1"),
        (("--adapter", "none"), "none"),
    ],
)
def test_wrong_use(run: Run, model: str, write: Write, words: tuple[str, ...], message: str) -> None:
    finished = run("eval", model, write({"question": "Hello!", "answer": "Hi!"}), *words)
    assert finished.status in (FAILED, WRONG_USE)
    assert message in finished.err
    assert finished.out == ""
