"""Every example runs as a newcomer would run it, is short, and is what the documentation shows."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from internvl import ChatModel

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
IMAGES = ROOT / "examples" / "images"
DOCUMENT = ROOT / "docs" / "how-to" / "quick-start.md"
MAX_LINES = 60
MAX_IMAGE_BYTES = 200_000

CHAT = ("internvl2_5_qwen2", "internvl1_5_internlm2")
RUNS = {
    "chat_batch": (CHAT[:1], [r"(?s)(User: .*\nAssistant: .*){3}"]),
    "chat_messages": (
        CHAT[:1],
        [r"\(600, 400\): 2 x 2 tiles, 45", r"\(451, 300\): 1 x 1 tiles, 9 tokens", "Assistant: "],
    ),
    "chat_one_image": (CHAT, [r"(?s)(Assistant: .*){2}", r"7 tiles, \d+ vision tokens, \d+ new tokens"]),
    "chat_several_images": (CHAT[:1], [r"(?s)(Separate: .*){2}(Combined: .*){2}"]),
    "chat_streaming": (CHAT[:1], [r"first word after \d+\.\d s, ended by: (stop|length)"]),
    "chat_text": (CHAT[:1], [r"2 rounds, \d+ tokens"]),
    "chat_video": (CHAT[:1], [r"(?s)(Assistant: .*){2}", r"from 2 frames:"]),
    "compat_batch": (CHAT[:1], [r"(?s)(User: .*Assistant: .*){4}"]),
    "compat_generate": (CHAT[:1], ["the same ids from features: True", "sampled: "]),
    "compat_one_image": (CHAT, [r"(?s)(User: .*Assistant: .*){3}", r"7 tiles, 2 rounds"]),
    "compat_several_images": (
        CHAT[:1],
        [r"(?s)-- combined(.*Assistant: ){2}.*-- separate(.*Assistant: ){2}"],
    ),
    "compat_streaming": (CHAT[:1], [r"\d+ characters"]),
    "compat_text": (CHAT[:1], [r"(?s)(User: .*Assistant: .*){2}", "2 rounds"]),
    "compat_video": (CHAT[:1], [r"(?s)Frame-8: <image>.*Assistant: .*User: Describe .*Assistant: "]),
    "compat_vision_features": (
        ("internvit_300m", CHAT[0]),
        [r"all tokens: \(1, (26|37), 48\)", r"class token: \(1, 48\)", "hidden states: 4"],
    ),
    "compat_contrastive": (
        ("internvl_14b",),
        [r"(?s)InternVL-C tensor\(\[\[.*InternVL-G tensor\(\[\[", r"Caption: \S"],
    ),
    "contrastive": (
        ("internvl_14b",),
        [r"(?s)(InternVL-[CG]: .*astronaut( +\d\.\d\d){4}.*){2}", r"vectors: \(4, 56\)", "rocket: "],
    ),
    "grounding": (CHAT[:1], [r"\d+ boxes drawn into boxes.png"]),
    "save_and_convert": (CHAT, [r"(?s)official: .*the same answer.*hf: .*the same answer"]),
    "vision_features": (
        ("internvit_300m", CHAT[0]),
        [r"all tokens: \(4, (26|37), 48\)", r"astronaut( +-?\d\.\d\d){4}"],
    ),
}  # fmt: skip
"""By example: the checkpoints it is run with, and patterns of what it prints."""


@pytest.mark.parametrize(
    ("name", "checkpoint"), [(name, one) for name, (models, _) in RUNS.items() for one in models]
)
def test_example_runs(name, checkpoint, golden_dir, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    run(name, golden_dir / checkpoint, monkeypatch)
    printed = capsys.readouterr().out
    for pattern in RUNS[name][1]:
        assert re.search(pattern, printed), f"{pattern!r} is not in:\n{printed}"


def run(name: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "examples" / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(path), str(checkpoint)])
    runpy.run_path(str(path), run_name="__main__")


def test_the_default_model_is_named_once_and_first() -> None:
    """Without arguments every example takes nano, or nano-c, as its first lines say."""
    for path in EXAMPLES:
        text = path.read_text(encoding="utf-8")
        taken = re.findall(r'sys\.argv\[1\] if len\(sys\.argv\) > 1 else "(nano(?:-c)?)"', text)
        assert taken == ["nano-c" if "contrastive" in path.stem else "nano"], path.name
        assert f"usage: python examples/{path.name} [MODEL]" in text, path.name


def test_boxes_are_drawn(golden_dir, tmp_path, monkeypatch, capsys) -> None:
    """With a model that answers with a box, which random weights do not."""
    marked = "<ref>the cat's face</ref><box>[[22, 66, 443, 833]]</box>"
    chat = ChatModel.chat

    def answer(self, *args, **options):
        return replace(chat(self, *args, **options), marked_text=marked)

    monkeypatch.setattr(ChatModel, "chat", answer)
    monkeypatch.chdir(tmp_path)
    run("grounding", golden_dir / CHAT[0], monkeypatch)
    assert "the cat's face: 10, 20 to 200, 250 pixels\n1 boxes drawn" in capsys.readouterr().out
    with Image.open(tmp_path / "boxes.png") as drawn, Image.open(IMAGES / "cat.jpg") as photo:
        assert drawn.size == photo.size
        assert drawn.convert("RGB").tobytes() != photo.convert("RGB").tobytes()


def test_an_example_runs_on_its_own(golden_dir, tmp_path) -> None:
    """As a process, from another directory."""
    finished = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "compat_text.py"), str(golden_dir / CHAT[0])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={"PYTHONUTF8": "1", "PATH": "", "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    assert "2 rounds" in finished.stdout


def test_every_example_is_run() -> None:
    assert [path.stem for path in EXAMPLES] == sorted(RUNS)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_pictures_are_small_and_their_sources_named() -> None:
    sources = (IMAGES / "SOURCES.md").read_text(encoding="utf-8")
    pictures = sorted(IMAGES.glob("*.jpg"))
    assert len(pictures) == 4
    for path in pictures:
        assert path.stat().st_size <= MAX_IMAGE_BYTES
        row = next(line for line in sources.splitlines() if f"`{path.name}`" in line)
        assert re.search("CC0|public domain", row)


def shown_files() -> dict[str, str]:
    """The code blocks of the document that say which file they are."""
    text = DOCUMENT.read_text(encoding="utf-8")
    return dict(re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", text, flags=re.DOTALL))


def test_the_documentation_shows_the_examples() -> None:
    shown = shown_files()
    assert len(shown) >= 4
    for name, code in shown.items():
        assert code == (ROOT / name).read_text(encoding="utf-8"), f"{DOCUMENT.name} shows another {name}"


def test_the_documentation_names_every_example() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    missing = [path.name for path in EXAMPLES if f"examples/{path.name}" not in text]
    assert missing == []
    assert text.count("```python") == len(shown_files()), "a snippet that is no example is not tested"
