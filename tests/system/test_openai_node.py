"""OpenAI's client for JavaScript against a live server; tests/serving asks the same of the one for Python."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from internvl import ContrastiveModel
from tests.serving.conftest import data_url, encoded, picture

SCRIPTS = Path(__file__).parent / "openai_node"
PHOTO = data_url(encoded(picture(112, 56)))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words that run the script."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("THE CLIENT FOR JAVASCRIPT IS NOT TESTED: there is no node with npm")
    folder = tmp_path_factory.mktemp("node") / "openai_node"
    shutil.copytree(SCRIPTS, folder, ignore=shutil.ignore_patterns("node_modules"))
    words = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"]
    try:
        subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True, timeout=180)
    except subprocess.CalledProcessError as reason:
        pytest.skip(f"THE CLIENT FOR JAVASCRIPT IS NOT TESTED: npm install failed: {reason.stderr[-500:]}")
    except subprocess.TimeoutExpired:
        pytest.skip("THE CLIENT FOR JAVASCRIPT IS NOT TESTED: npm install took more than 180 s")
    return [node, str(folder / "ask.mjs")]


@pytest.fixture(scope="module")
def answers(client: list[str], both: str) -> dict[str, Any]:
    """What the server of a chat model and a pair of encoders said, by what was asked."""
    words = [*client, f"{both}/v1", "tiny", "pair", PHOTO]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_chat(answers: dict[str, Any]) -> None:
    chat = answers["chat"]
    assert (chat["object"], chat["model"]) == ("chat.completion", "tiny")
    assert chat["choices"][0]["finish_reason"] == "length"
    assert chat["usage"]["completion_tokens"] == 5


def test_a_stream_is_the_same_answer(answers: dict[str, Any]) -> None:
    stream, chat = answers["stream"], answers["chat"]
    assert stream["text"] == chat["choices"][0]["message"]["content"]
    assert stream["usage"]["completion_tokens"] == 5


def test_a_picture(answers: dict[str, Any]) -> None:
    (image,) = answers["image"]["usage"]["images"]
    assert image == {"width": 112, "height": 56, "grid": [2, 1], "tiles": 3, "tokens": 12}


def test_tools(answers: dict[str, Any]) -> None:
    (choice,) = answers["tools"]["called"]["choices"]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "count"
    assert json.loads(call["function"]["arguments"])["animal"] in ("cat", "dog")
    assert answers["tools"]["after"]["usage"]["completion_tokens"] == 2


def test_a_schema(answers: dict[str, Any]) -> None:
    (choice,) = answers["schema"]["choices"]
    assert choice["finish_reason"] == "stop"
    assert json.loads(choice["message"]["content"])["animal"] in ("cat", "dog")


def test_embeddings(answers: dict[str, Any], pair: ContrastiveModel) -> None:
    expected = pair.embed_texts(["a dog", "a red car"], normalize=True).numpy()
    assert np.allclose(answers["embeddings"]["vectors"], expected, atol=1e-6)
    assert answers["embeddings"]["usage"]["prompt_tokens"] > 0


def test_files(answers: dict[str, Any]) -> None:
    files = answers["files"]
    assert (files["found"]["filename"], files["found"]["bytes"]) == ("a.txt", 3)
    assert (files["isListed"], files["content"], files["deleted"]) == (True, "abc", True)


def test_batches(answers: dict[str, Any]) -> None:
    batch, rows = answers["batches"]["batch"], answers["batches"]["rows"]
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    assert {row["custom_id"]: row["response"]["status_code"] for row in rows} == {"good": 200, "bad": 400}


def test_errors_are_the_clients_own(answers: dict[str, Any]) -> None:
    found = {"kind": "NotFoundError", "status": 404, "code": "model_not_found", "param": "model"}
    assert answers["error"] == found
