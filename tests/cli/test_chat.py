"""One question: the answer on stdout, everything else elsewhere."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import internvl
from internvl.api.chat import ChatModel
from internvl.api.reply import Reply
from internvl.cli.chat import Options, with_model
from internvl.cli.main import DONE, FAILED, INTERRUPTED, WRONG_USE
from tests.cli.conftest import Run, save_noise

SHORT = ("--max-new-tokens", "8")


def test_the_answer_is_that_of_the_library(run: Run, model: str, photo: str) -> None:
    loaded = internvl.load(model)
    assert isinstance(loaded, ChatModel)
    expected = loaded.chat("What is this?", images=[photo], max_new_tokens=8)
    finished = run("chat", photo, "What is this?", "--model", model, *SHORT, "--json")
    assert (finished.status, finished.err) == (DONE, "")
    document = finished.json
    assert document["text"] == expected.text
    assert document["finish_reason"] == expected.finish_reason
    assert document["model"] == model
    assert document["boxes"] == []
    assert document["usage"]["prompt_tokens"] == expected.usage.prompt_tokens
    assert document["usage"]["tiles"] == 3


def test_streaming_and_not_print_the_same(run: Run, model: str, photo: str) -> None:
    words = ("chat", photo, "Name it", "--model", model, *SHORT)
    streamed, whole = run(*words), run(*words, "--no-stream")
    assert streamed.status == whole.status == DONE
    assert streamed.out.strip() == whole.out.strip()
    assert streamed.out.endswith("\n")
    assert streamed.err == whole.err == ""


def test_words_may_stand_between_options(run: Run, model: str, photo: str) -> None:
    together = run("chat", photo, "Name it", "--model", model, *SHORT, "--json").json
    apart = run("chat", "--model", model, photo, "--json", *SHORT, "Name it").json
    assert apart["text"] == together["text"]
    assert apart["usage"]["prompt_tokens"] == together["usage"]["prompt_tokens"]


def test_the_model_may_come_first(run: Run, model: str, photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("What?", "--max-new-tokens", "4", "--json")
    finished = run("chat", model, photo, *words)
    expected = run("chat", photo, *words, "--model", model)
    assert (finished.status, finished.json["ids"]) == (0, expected.json["ids"])
    assert finished.json["model"] == model
    assert run("chat", model, *words).json["model"] == model
    assert "no such file" in run("chat", "missing", "What?").err
    assert "q" * 5000 in with_model(Options(words=("q" * 5000,))).words
    named = with_model(Options(words=("InternVL2_5-1B", "What?")))
    assert (named.model.model, named.words) == ("InternVL2_5-1B", ("What?",))
    assert with_model(Options(words=("nano",))).words == ("nano",)


def test_limits_on_tiles_and_system_message_reach_the_model(run: Run, model: str, photo: str) -> None:
    words = ("chat", photo, "Name it", "--model", model, *SHORT, "--json")
    assert run(*words, "--max-tiles", "1").json["usage"]["tiles"] == 1
    longer = run(*words, "--system", "You are a ship's cook. " * 20).json["usage"]["prompt_tokens"]
    assert longer > run(*words).json["usage"]["prompt_tokens"] + 100


def test_another_template(run: Run, model: str) -> None:
    """Vicuna's template spells its roles out, where the checkpoint's own has a token for each."""
    words = ("chat", "Hi", "--model", model, *SHORT, "--json")
    own, other = run(*words), run(*words, "--template", "vicuna_v1.1")
    assert own.status == other.status == DONE
    assert own.json["usage"]["prompt_tokens"] != other.json["usage"]["prompt_tokens"]
    unknown = run(*words, "--template", "nonsense")
    assert unknown.status == WRONG_USE
    assert "nonsense" in unknown.err


def test_sampling_is_passed_on(run: Run, model: str) -> None:
    words = ("chat", "Say something", "--model", model, *SHORT, "--json", "--temperature", "5")
    first, again, other = (run(*words, "--seed", seed).json["text"] for seed in ("1", "1", "2"))
    assert first == again != other
    assert run("chat", "x", "--model", model, *SHORT, "--num-beams", "2").status == DONE


def test_several_kinds_of_files(run: Run, model: str, photo: str, tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(3):
        save_noise(frames / f"f_{number}.png", 60, 60, seed=number)
    Image.new("RGB", (50, 70), "white").save(tmp_path / "paper.pdf")
    words = (photo, str(tmp_path / "paper.pdf"), str(frames), "Compare them")
    finished = run("chat", *words, "--model", model, *SHORT, "--json", "--max-tiles", "1", "--frames", "2")
    assert finished.json["usage"]["tiles"] == 4


def test_the_question_may_come_from_stdin(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("chat", "--model", model, *SHORT, "--json")
    monkeypatch.setattr("sys.stdin", io.StringIO("Two\nlines\n"))
    piped = run(*words, "-").json["usage"]["prompt_tokens"]
    assert piped == run(*words, "Two\nlines").json["usage"]["prompt_tokens"]
    monkeypatch.setattr("sys.stdin", io.StringIO(" \n"))
    empty = run(*words, "-")
    assert empty.status == WRONG_USE
    assert "stdin" in empty.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("missing.jpg", "What?"), "missing.jpg"),
        (("missing.jpg",), "missing.jpg"),
        (("<image> what?",), "0 pictures"),
        (("What?", "--temperature", "-1"), "temperature"),
        (("What?", "--max-new-tokens", "99999"), "positions"),
        (("What?", "--threads", "0"), "--threads"),
        (("What?", "--threads", "99999"), "--threads"),
        (("What?", "--draw", "a.png"), "picture"),
        (("What?", "--draw", "a.docx"), ".png"),
        (("What?", "--draw", "nowhere/a.png"), "no directory nowhere"),
        (("--json",), "question"),
        (("What?", "--model", "InternVL9-1B"), "InternVL9-1B"),
    ],
)
def test_wrong_use(run: Run, model: str, words: tuple[str, ...], told: str) -> None:
    given = () if "--model" in words else ("--model", model)
    finished = run("chat", *words, *given)
    assert (finished.status, finished.out) == (WRONG_USE, "")
    assert told in finished.err
    assert "Traceback" not in finished.err


def test_failed_runs(run: Run, model: str, tower: str, tmp_path: Path) -> None:
    empty = run("chat", "What?", "--model", str(tmp_path))
    assert (empty.status, empty.out) == (FAILED, "")
    assert "no" in empty.err
    offline = run("chat", "What?", "--model", "InternVL2_5-1B")
    assert offline.status == FAILED
    assert "offline" in offline.err
    device = run("chat", "What?", "--model", model, "--device", "cuda:77")
    assert device.status == FAILED
    assert "cuda:77" in device.err
    assert run("chat", "What?", "--model", model, "--dtype", "float99").status == WRONG_USE
    assert run("chat", "What?", "--model", tower).status == WRONG_USE


def test_boxes_are_drawn(
    run: Run, model: str, photo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "drawn.png"
    words = ("chat", photo, "Where?", "--model", model, *SHORT, "--no-stream", "--draw", str(target))
    nothing = run(*words)
    assert nothing.status == FAILED
    assert "no boxes" in nothing.err
    assert not target.exists()
    answer = ChatModel.chat

    def with_box(self: ChatModel, *arguments: object, **options: object) -> Reply:
        reply = answer(self, *arguments, **options)  # type: ignore[arg-type]
        return replace(reply, marked_text="<ref>dog</ref><box>[[100, 100, 900, 800]]</box>")

    monkeypatch.setattr(ChatModel, "chat", with_box)
    drawn = run(*words)
    assert drawn.status == DONE
    with Image.open(target) as picture, Image.open(photo) as original:
        assert picture.size == original.size
        assert picture.tobytes() != original.tobytes()


def test_interrupted_while_streaming(
    run: Run, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[str] = []

    def interrupted(text: str) -> None:
        shown.append(text)
        if len(shown) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("internvl.cli.output.write", interrupted)
    finished = run("chat", "Go on", "--model", model, "--max-new-tokens", "100", "--min-new-tokens", "100")
    assert finished.status == INTERRUPTED
    assert len(shown) == 3, "two pieces and the end of the line"
