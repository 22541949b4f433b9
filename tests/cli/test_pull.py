"""Downloads from a hub on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from internvl.cli.main import DONE, FAILED, WRONG_USE
from tests.checkpoints.hub_server import Hub, running_hub, shards
from tests.cli.conftest import Run


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as hub:
        hub.add("OpenGVLab/InternVL2_5-1B", shards())
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # as it was when imported
        yield hub


def test_a_model_and_where_it_lies(run: Run, hub: Hub, tmp_path: Path) -> None:
    finished = run("pull", "InternVL2_5-1B")
    assert finished.status == DONE
    folder = Path(finished.out.strip())
    assert folder.is_relative_to(tmp_path / "cache")
    assert (folder / "config.json").is_file()
    assert "7 files" in finished.err
    document = run("pull", "InternVL2_5-1B", "--json").json
    assert document["path"] == str(folder)
    assert document["bytes"] == sum(document["files"].values()) > 600_000
    assert hub.counts()["model-00001-of-00002.safetensors"] == 1


def test_some_files_elsewhere(run: Run, hub: Hub, tmp_path: Path) -> None:
    words = ("--include", "*.json", "--cache-dir", str(tmp_path / "other"), "--json")
    document = run("pull", "InternVL2_5-1B", *words).json
    assert Path(document["path"]).is_relative_to(tmp_path / "other")
    assert "config.json" in document["files"]
    assert not [name for name in document["files"] if name.endswith(".safetensors")]


def test_offline_says_what_is_missing(run: Run) -> None:
    finished = run("pull", "InternVL2_5-1B", "--offline")
    assert (finished.status, finished.out) == (FAILED, "")
    assert "offline" in finished.err


def test_failures(run: Run, hub: Hub) -> None:
    assert run("pull", "InternVL2_5-2B").status == FAILED
    wrong = run("pull", "InternVL2_5-1B", "--revision", "v9")
    assert wrong.status == FAILED
    assert "v9" in wrong.err
    unknown = run("pull", "InternVL9")
    assert unknown.status == WRONG_USE
    assert "InternVL9" in unknown.err
