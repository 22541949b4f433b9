"""Reference log-probabilities: a model at rest, a frozen copy, and a file of stored ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from internvl.adapt.lora import LoRA, add_adapters
from internvl.data.example import Example, Size
from internvl.data.meta import DataSet
from internvl.data.sources import open_source
from internvl.errors import ImageError, TrainingError
from internvl.models.layers import DropPath
from internvl.models.vlm import VLM
from internvl.training.forward import trained_states, vision_tokens
from internvl.training.reference import Reference, log_probs, quiet_log_probs, store, without_adapters
from tests.training.tiny import batch, examples


def test_log_probabilities_are_sums_over_the_trained_tokens_of_a_branch(model: VLM) -> None:
    packed = batch()
    hidden_AD = trained_states(model, packed)
    each_A = model.llm.logits(hidden_AD).detach().log_softmax(-1).gather(1, packed.targets_A[:, None])[:, 0]
    expected = [float(each_A[packed.branches_A == index].sum()) for index in range(packed.num_branches)]
    assert log_probs(model, hidden_AD, packed).tolist() == pytest.approx(expected, rel=1e-5)


def test_a_model_at_rest_drops_nothing_and_goes_on_as_it_was(model: VLM) -> None:
    expected_B = quiet_log_probs(model.eval(), batch())
    add_adapters(model, [(r"llm\.layers\..*", LoRA(rank=2, dropout=0.5))])
    model.train()
    for module in model.vit.modules():
        if isinstance(module, DropPath):
            module.rate = 0.5
    model.projector.eval()
    assert torch.equal(quiet_log_probs(model, batch()), expected_B)
    assert model.training
    assert all(module.training for module in model.vit.modules())
    assert not model.projector.training


def test_a_copy_does_not_follow_the_model(model: VLM) -> None:
    before_B = quiet_log_probs(model, batch())
    reference = Reference(model)
    with torch.no_grad():
        model.llm.embed.weight.add_(1)
    assert torch.equal(reference(batch()), before_B)
    assert not torch.equal(quiet_log_probs(model, batch()), before_B)
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_adapters_off_is_the_model_at_rest_also_with_stochastic_depth(model: VLM) -> None:
    """Where blocks of the tower are skipped, the pictures of the trained model are not those at rest."""
    vision = replace(model.config.vision, drop_path=0.5)
    dropping = VLM(replace(model.config, vision=vision))
    dropping.load_state_dict(model.state_dict())
    dropping.requires_grad_(False)
    expected_B = quiet_log_probs(dropping, batch())
    add_adapters(dropping, [(r"llm\.layers\..*", LoRA(rank=2))])
    dropping.train()
    seen_SD = vision_tokens(dropping, batch())
    assert not torch.equal(seen_SD, vision_tokens(dropping.eval(), batch()))
    assert torch.equal(without_adapters(dropping.train(), batch(), seen_SD), expected_B)


class Maker:
    """Examples of rows that name one."""

    def measure(self, row: Mapping[str, Any], dataset: DataSet, *, seed: int) -> Size:
        raise NotImplementedError

    def example(self, row: Mapping[str, Any], dataset: DataSet, *, seed: int, key: str) -> Example:
        if row["image"] == "broken.jpg":
            raise ImageError("cut off")
        return replace(examples()[int(row["id"])], key=key, is_preference="question" in row)


def dataset(folder: Path, *lines: str) -> DataSet:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return DataSet(name="pairs", source=open_source(path), root=folder, augment=True)


PAIR = '{"id": 1, "image": "a.jpg", "question": "¿Qué?"}'
STORED = ("ref_chosen_logps", "ref_rejected_logps")


def test_stored_rows_are_the_rows_with_two_numbers_more(model: VLM, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert store(model, Maker(), dataset(tmp_path, PAIR, PAIR), out) == {}
    text = out.read_text(encoding="utf-8")
    values = dict(zip(STORED, quiet_log_probs(model, batch(examples()[1])).tolist(), strict=True))
    assert [json.loads(line) for line in text.splitlines()] == 2 * [json.loads(PAIR) | values]
    assert "¿Qué?" in text


def test_half_a_character_is_kept(model: VLM, tmp_path: Path) -> None:
    pair = PAIR.replace("¿Qué?", "\\ud83d 图")
    assert store(model, Maker(), dataset(tmp_path, pair), tmp_path / "out.jsonl") == {}
    text = (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    assert json.loads(text)["question"] == "\ud83d 图"
    assert "图" in text


def test_rows_that_make_no_pair_are_named_and_kept(model: VLM, tmp_path: Path) -> None:
    answers, broken = '{"id": 1, "image": "a.jpg"}', '{"id": 1, "image": "broken.jpg"}'
    data = dataset(tmp_path, answers, "{", broken, PAIR)
    wrong = store(model, Maker(), data, tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[:2] == [json.loads(answers), json.loads(broken)]
    assert set(lines[2]) == {"id", "image", "question", *STORED}
    assert list(wrong) == [data.source.where(index) for index in (0, 1, 2)]
    assert "2 answers on record" in wrong[data.source.where(0)]


def test_log_probabilities_that_are_not_finite_leave_no_file(model: VLM, tmp_path: Path) -> None:
    with torch.no_grad():
        model.llm.head.weight.fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"pairs\.jsonl.*nan.* not finite"):
        store(model, Maker(), dataset(tmp_path, PAIR), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_rows_that_json_cannot_hold_are_refused(model: VLM, tmp_path: Path) -> None:
    class Parquet:
        name = "rows"

        def __len__(self) -> int:
            return 1

        def row(self, index: int) -> Mapping[str, Any]:
            return {"id": 1, "image": b"bytes"}

        def where(self, index: int) -> str:
            return "rows.parquet, record 0"

    data = DataSet(name="pairs", source=Parquet(), root=tmp_path)
    with pytest.raises(TrainingError, match=r"rows\.parquet, record 0: .* must be files"):
        store(model, Maker(), data, tmp_path / "out.jsonl")
