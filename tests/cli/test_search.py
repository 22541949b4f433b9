"""Embedding, indexing and searching on the command line, by the recorded tiny InternVL-G and by a tower."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

import internvl
from internvl.api.contrastive import ContrastiveModel
from internvl.cli.main import DONE, FAILED, WRONG_USE
from internvl.search.vectors import Embeddings
from tests.cli.conftest import Run, save_noise
from tests.search.fakes import contents

NAMES = ("a.png", "b.png", "[bold]c.png", "sub/d.png")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        save_noise(folder / name, 40, 30, seed=seed)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def index(run: Run, path: str, pictures: Path, tmp_path: Path) -> str:
    assert run("embed", str(pictures), "--out", str(tmp_path / "vectors"), "--model", path).status == DONE
    finished = run("index", str(tmp_path / "vectors"), "--out", str(tmp_path / "index"), "--json")
    assert (finished.status, finished.json["kind"], finished.json["count"]) == (DONE, "exact", 4)
    return str(tmp_path / "index")


@pytest.mark.parametrize("mode", ["C", "G"])
def test_vectors_are_those_of_the_model(
    run: Run, path: str, pictures: Path, tmp_path: Path, mode: str
) -> None:
    out = tmp_path / "vectors"
    words = (str(pictures), "--out", str(out), "--model", path, "--mode", mode, "--json", "--normalize")
    finished = run("embed", *words, "--fit", "crop")
    assert finished.status == DONE
    assert {name: finished.json[name] for name in ("rows", "vectors", "failures", "width")} == {
        "rows": 5,
        "vectors": 4,
        "failures": 1,
        "width": 56,
    }
    assert "broken.png: " in finished.err
    ((entries, vectors_BE),) = Embeddings(out).parts()
    model = internvl.load(path)
    assert isinstance(model, ContrastiveModel)
    sources = [pictures / entry.key for entry in entries]
    expected = model.embed_images(sources, mode, fit="crop", normalize=True)  # type: ignore[arg-type]
    np.testing.assert_allclose(vectors_BE, expected, atol=2e-6)


def test_the_same_command_again_does_nothing(run: Run, path: str, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "vectors"
    words = ("embed", str(pictures), "--out", str(out), "--model", path, "--shard", "2")
    assert run(*words).status == DONE
    before = contents(out)
    (out / "shards" / "000001.json").unlink()
    (out / "manifest.json").unlink()
    assert run(*words).status == DONE
    assert contents(out) == before
    changed = run(*words, "--mode", "G")
    assert changed.status == WRONG_USE
    assert "embedder" in changed.err


def test_texts_and_pictures_find_pictures(
    run: Run, path: str, pictures: Path, index: str, tmp_path: Path
) -> None:
    model = internvl.load(path)
    assert isinstance(model, ContrastiveModel)
    page = tmp_path / "page.html"
    words = (
        "a dog",
        "一只狗",
        "--image",
        str(pictures / "b.png"),
        "-k",
        "3",
        "--gallery",
        str(page),
        "--json",
    )
    finished = run("search", index, *words)
    assert finished.status == DONE
    texts_QE = model.embed_texts(["a dog", "一只狗"])
    images_BE = model.embed_images([pictures / name for name in NAMES])
    for result, text_E in zip(finished.json["results"], texts_QE, strict=False):
        scores = dict(zip(NAMES, cosine_similarity(text_E[None], images_BE).tolist(), strict=True))
        best = sorted(scores, key=lambda name: -scores[name])[:3]
        assert [hit["key"] for hit in result["hits"]] == best
        assert [hit["score"] for hit in result["hits"]] == pytest.approx(
            [scores[one] for one in best], abs=1e-5
        )
    assert finished.json["results"][2]["hits"][0]["key"] == "b.png"
    assert page.read_text().count("<figure>") == 9


def test_filters_and_the_table(run: Run, index: str) -> None:
    finished = run("search", index, "a dog", "--key", "*c.png")
    assert finished.status == DONE
    assert finished.out.splitlines()[0] == "a dog"
    assert finished.out.split()[-1] == "[bold]c.png"
    nothing = run("search", index, "a dog", "--where", "year=2020")
    assert nothing.status == FAILED


def test_an_index_of_a_tower_takes_pictures_alone(
    run: Run, tower: str, pictures: Path, tmp_path: Path
) -> None:
    out = (str(tmp_path / "vectors"), str(tmp_path / "index"))
    assert run("embed", str(pictures), "--out", out[0], "--model", tower, "--format", "npy").status == DONE
    assert run("index", out[0], "--out", out[1]).status == DONE
    finished = run("search", out[1], "--image", str(pictures / "a.png"), "-k", "1", "--json")
    assert finished.json["results"][0]["hits"][0]["key"] == "a.png"
    refused = run("search", out[1], "a dog")
    assert refused.status == WRONG_USE
    assert "knows no texts" in refused.err
    assert run("embed", str(pictures), "--out", out[0], "--model", tower, "--mode", "G").status == WRONG_USE


def test_another_model_is_refused(run: Run, index: str, tower: str, pictures: Path) -> None:
    finished = run("search", index, "--image", str(pictures / "a.png"), "--model", tower)
    assert finished.status == WRONG_USE
    assert "other weights" in finished.err


def test_texts_are_for_the_model_of_the_pictures(run: Run, path: str, index: str, tmp_path: Path) -> None:
    """The text sides are equal: what counts is whether the pictures' vectors are this model's."""
    assert run("search", index, "a dog", "--model", path).status == DONE
    model = internvl.load(path)
    assert isinstance(model, ContrastiveModel)
    with torch.no_grad():
        model.encoder.image_pool.out.weight.mul_(1.5)
    internvl.save(model, tmp_path / "other")
    refused = run("search", index, "a dog", "--model", str(tmp_path / "other"))
    assert (refused.status, refused.out) == (WRONG_USE, "")
    assert "other weights" in refused.err
    assert "--model" in refused.err


@pytest.mark.parametrize(
    ("change", "lacking"),
    [
        (lambda made_by: {}, "lacks model, weights, dtype, mode, fit;"),
        (lambda made_by: {"model": made_by["model"]}, "lacks weights, dtype, mode, fit;"),
        (lambda made_by: {**made_by, "mode": "D", "fit": 3}, "lacks mode, fit;"),
        (lambda made_by: {**made_by, "weights": None}, "lacks weights;"),
    ],
)
def test_an_index_that_does_not_say_what_made_it(
    run: Run, index: str, pictures: Path, change: Callable[[dict[str, Any]], dict[str, Any]], lacking: str
) -> None:
    file = Path(index) / "index.json"
    described = json.loads(file.read_text())
    file.write_text(json.dumps({**described, "embedder": change(described["embedder"])}))
    for query in (("a dog",), ("--image", str(pictures / "a.png"))):
        refused = run("search", index, *query)
        assert (refused.status, refused.out) == (WRONG_USE, "")
        assert lacking in refused.err
        assert "make them again with `internvl embed`" in refused.err


def test_nothing_readable(run: Run, path: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("none.png\n")
    finished = run("embed", str(tmp_path / "list.txt"), "--out", str(tmp_path / "vectors"), "--model", path)
    assert finished.status == FAILED
    row = json.loads((tmp_path / "vectors" / "errors.jsonl").read_text())
    assert (row["key"], row["error"]) == ("none.png", "ImageError")
    refused = run("index", str(tmp_path / "vectors"), "--out", str(tmp_path / "index"))
    assert (refused.status, "no vectors" in refused.err) == (WRONG_USE, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("embed", "PICTURES"), "--out"),
        (("embed", "--out", "x"), "at least one folder"),
        (("embed", "PICTURES", "--out", "x", "--workers", "0"), "--workers"),
        (("embed", "PICTURES", "--out", "x", "--batch", "0"), "batch"),
        (("embed", "PICTURES", "--out", "x", "--key", "name"), "no input has a column"),
        (("index", "PICTURES", "--out", "x"), "holds no embeddings"),
        (("index", "PICTURES"), "--out"),
        (("search", "PICTURES", "a dog"), "holds no index"),
        (("search", "PICTURES"), "say what to search for"),
        (("search", "PICTURES", "a dog", "--where", "year"), "NAME=VALUE"),
        (("search", "PICTURES", "a dog", "-k", "600", "--gallery", "x.html"), "500"),
    ],
)
def test_wrong_use(run: Run, path: str, pictures: Path, words: tuple[str, ...], told: str) -> None:
    finished = run(
        *(str(pictures) if word == "PICTURES" else word for word in words),
        *(("--model", path) if words[0] == "embed" else ()),
    )
    assert (finished.status, finished.out) == (WRONG_USE, "")
    assert told in finished.err
