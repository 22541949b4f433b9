"""Held-out pairs: the loss of the objective, and recall that equals the public function's on all captions."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import pytest
import torch
from PIL import Image

from internvl.data.meta import DataSet, open_data
from internvl.data.pair_examples import PairExamples
from internvl.data.pairs import PairBatch
from internvl.errors import InputError
from internvl.evaluation.retrieval import recall
from internvl.models.dual_encoder import DualEncoder
from internvl.processing.texts import TextProcessor
from internvl.processing.tokenizer import load_tokenizer
from internvl.training import evaluate_pairs
from internvl.training.evaluate_pairs import PairEvaluator, modes_of
from internvl.training.objective_spec import Contrastive, Stage2
from internvl.training.objectives import make_objective
from internvl.training.recipe import Evaluation
from internvl.training.world import World
from tests.conftest import GoldenFixtures
from tests.training.dual import dual_encoder

SIZE = 28
CAPTIONS = ["red dog", "two cats", "a house", "nothing", "snow"]


@dataclass(frozen=True, kw_only=True)
class Recording(World):
    """What a process would tell the others."""

    seen: list[torch.Tensor] = field(default_factory=list)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        self.seen.append(values.clone())
        return values


@pytest.fixture
def dataset(tmp_path: Path) -> DataSet:
    """Five pictures with two English captions, three of them with a Chinese one; the last is broken."""
    rows = []
    for index, text in enumerate(CAPTIONS):
        Image.new("RGB", (30, 40), (index * 50, 90, 255 - index * 40)).save(tmp_path / f"{index}.png")
        chinese = {"zh": [f"第{index}"]} if index < 3 else {}
        rows.append({"image": f"{index}.png", "en": [text, f"{text} {index}"], **chinese})
    rows.append({"image": "missing.png", "en": ["x"]})
    (tmp_path / "held.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return open_data(tmp_path / "held.jsonl")[0]


@pytest.fixture
def examples(golden_dir: GoldenFixtures) -> PairExamples:
    return PairExamples(TextProcessor(load_tokenizer(golden_dir / "internvl_14b")), image_size=SIZE)


@pytest.fixture
def model() -> DualEncoder:
    made = dual_encoder().eval()
    made.qllama.embed = torch.nn.Embedding(600, made.config.text.width)
    return made


def test_recall_of_every_mode_and_language(
    model: DualEncoder, dataset: DataSet, examples: PairExamples
) -> None:
    objective = make_objective(Contrastive())
    settings = Evaluation(metric="recall", examples=10)
    evaluator = PairEvaluator(model, [dataset], examples, settings, objective, modes=("C", "G"))
    assert [bad.key for bad in evaluator.bad] == ["held:5"]
    row = evaluator.evaluate()
    read = [examples.read(dataset.source.row(number), dataset) for number in range(5)]
    tiles = torch.stack([examples.tile(one) for one in read])
    means = []
    with torch.no_grad():
        features = model.vit(tiles)
        for language in ("en", "zh"):
            texts = [(n, text) for n, one in enumerate(read) for text in one.captions.get(language, ())]
            embedded = model.embed_texts([examples.texts.ids(text) for _, text in texts])
            for mode in ("C", "G"):
                images = model.pool_images(features, generative=mode == "G")
                found = recall(images, embedded, [number for number, _ in texts])
                for k in (1, 5, 10):
                    assert row[f"val_t2i_r{k}/{mode}/held/{language}"] == found.text_to_image[k]
                    assert row[f"val_i2t_r{k}/{mode}/held/{language}"] == found.image_to_text[k]
                means += [found.mean] if mode == "G" else []
    assert row["val_recall"] == pytest.approx(fmean(means))
    assert row["val_loss"] == row["val_loss/held"] > 0


def test_rows_of_one_picture_are_one_picture(
    model: DualEncoder, dataset: DataSet, examples: PairExamples
) -> None:
    """A row for each caption measures as one row with all of them."""
    rows = [(f"{number}.png", [text, f"{text} {number}"]) for number, text in enumerate(CAPTIONS)]
    forms = {
        "grouped": [{"image": name, "en": texts} for name, texts in rows],
        "single": [{"image": name, "en": text} for name, texts in rows for text in texts],
    }
    found = {}
    for form, written in forms.items():
        path = dataset.root / f"{form}.jsonl"
        path.write_text("\n".join(map(json.dumps, written)))
        settings, objective = Evaluation(metric="recall"), make_objective(Contrastive())
        row = PairEvaluator(model, open_data(path), examples, settings, objective).evaluate()
        found[form] = [share for name, share in row.items() if "recall" in name or "_r" in name]
    assert found["single"] == found["grouped"]


def test_the_loss_is_the_objectives(model: DualEncoder, dataset: DataSet, examples: PairExamples) -> None:
    seen: list[PairBatch] = []
    objective = make_objective(Contrastive())

    def looked(model: DualEncoder, batch: PairBatch) -> object:
        seen.append(batch)
        return objective(model, batch)

    row = PairEvaluator(model, [dataset], examples, Evaluation(), looked).evaluate()  # type: ignore[arg-type]
    with torch.no_grad():
        loss = objective(model, seen[0])
    assert row == {"val_loss": float(loss.total) / 5, "val_loss/held": float(loss.total) / 5}
    assert len(seen) == 1


def test_shares_of_two_processes_add_up(
    model: DualEncoder, dataset: DataSet, examples: PairExamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_pairs, "PAIRS_AT_ONCE", 2)
    settings, objective = Evaluation(metric="recall"), make_objective(Contrastive())
    worlds = [Recording(rank=0, size=2), Recording(rank=1, size=2), Recording()]
    for world in worlds:
        PairEvaluator(model, [dataset], examples, settings, objective, world=world).evaluate()
    assert [len(world.seen) for world in worlds] == [4, 4, 4]
    for first, second, whole in zip(*(world.seen for world in worlds), strict=True):
        assert first.abs().sum() > 0
        torch.testing.assert_close(first + second, whole)


def test_nothing_to_measure(model: DualEncoder, examples: PairExamples, tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text('{"image": "missing.png", "en": ["x"]}\n')
    with pytest.raises(InputError, match=r"no record of none can be used to evaluate: .*missing\.png"):
        PairEvaluator(
            model, open_data(tmp_path / "none.jsonl"), examples, Evaluation(), make_objective(Contrastive())
        )


def test_modes_of_objectives() -> None:
    assert modes_of(Contrastive()) == ("C",)
    assert modes_of(Contrastive(mode="G")) == modes_of(Stage2()) == ("C", "G")
