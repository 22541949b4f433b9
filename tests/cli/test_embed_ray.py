"""`internvl embed --ray` hands its job on with a model that any process can open; Ray itself is left out."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from internvl.cli import embed as command
from internvl.cli.main import DONE, WRONG_USE
from internvl.search.embed import embed
from internvl.search.inputs import Inputs
from internvl.search.job import Job
from tests.cli.conftest import Run, save_noise
from tests.search.fakes import contents


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for seed in range(3):
        save_noise(tmp_path / "pictures" / f"{seed}.png", 40, 30, seed=seed)
    return tmp_path / "pictures"


def test_workers_open_the_model_from_any_folder(
    run: Run, tower: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def elsewhere(job: Job, open_embedder: Any, out: Path, **options: Any) -> dict[str, Any]:
        """What a worker does, in another folder."""
        given.update(options)
        sent = pickle.dumps((job.as_json(), open_embedder))
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            fields, opener = pickle.loads(sent)
            job = Job.from_json(fields)
            return embed(job, Inputs(job.inputs, job.columns), opener(), out)

    monkeypatch.chdir(Path(tower).parent)
    monkeypatch.setattr(command, "embed_on_ray", elsewhere)
    words = ("embed", str(pictures), "--model", Path(tower).name, "--shard", "2", "--workers", "3")
    assert run(*words, "--out", str(tmp_path / "local")).status == DONE
    assert given == {}
    assert run(*words, "--out", str(tmp_path / "ray"), "--ray", "5").status == DONE
    assert {name: given[name] for name in ("workers", "readers", "gpus")} == {
        "workers": 5,
        "readers": 3,
        "gpus": 0,
    }
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


@pytest.mark.parametrize(
    ("words", "message"),
    [(("--ray", "0"), "--ray counts from 1"), (("--ray", "2", "--device", "cuda:1"), "not cuda:1")],
)
def test_wrong_use(run: Run, pictures: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    finished = run("embed", str(pictures), "--out", str(tmp_path / "out"), *words)
    assert finished.status == WRONG_USE
    assert message in finished.err
