"""Losses, weights and gradients of training batches against those of the released training code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from internvl.checkpoints.fill import place
from internvl.checkpoints.lazy import Held
from internvl.checkpoints.load import load_opened
from internvl.checkpoints.resolve import Checkpoint, open_checkpoint
from internvl.checkpoints.rules import Heads, convert, strictly
from internvl.data.batch import Batch, pack
from internvl.data.example import Branch, Example
from internvl.models.vlm import VLM
from internvl.training.loss import Loss
from internvl.training.objectives import Reduction, next_token, token_weights
from tests.conftest import GoldenFixtures

FIXTURES = ("internvl2_5_qwen2", "internvl1_5_internlm2")
REDUCTIONS: tuple[Reduction, ...] = ("token", "sample", "square")
IGNORED = -100


@dataclass(frozen=True)
class Golden:
    checkpoint: Checkpoint
    model: VLM
    expected: dict[str, Any]
    tensors: dict[str, Tensor]
    context_id: int

    def batch(self, sample_ids: list[int]) -> Batch:
        """The samples of these numbers as examples of one branch each."""
        samples = {sample["id"]: sample for sample in self.expected["samples"]}
        tile_size = self.expected["settings"]["image_size"]
        return pack([self.example(samples[number]) for number in sample_ids], tile_size)

    def example(self, sample: dict[str, Any]) -> Example:
        ids, trained = sample["input_ids"], [label != IGNORED for label in sample["labels"]]
        first = trained.index(True)
        has_tiles = any(sample["image_flags"])
        return Example(
            key=str(sample["id"]),
            prefix=tuple(ids[:first]),
            branches=(Branch(tuple(ids[first:]), tuple(trained[first:])),),
            slots=tuple(index for index, token in enumerate(ids) if token == self.context_id),
            tiles_N3HW=self.tensors["tiles"][sample["tile_index"]] if has_tiles else None,
        )

    def gradients(self, loss: Loss) -> dict[str, Tensor]:
        """Of the mean loss, by the released names and in their packing."""
        self.model.zero_grad()
        (loss.total / loss.weight).backward()
        ours = {name: Held(p.grad) for name, p in self.model.named_parameters() if p.grad is not None}
        text = self.model.config.text
        theirs = convert(ours, self.checkpoint.rules, Heads(text.num_heads, text.num_kv_heads), back=True)
        return {
            name: place(lazy, torch.float32, torch.device("cpu")) for name, lazy in strictly(theirs).items()
        }


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


@pytest.fixture(scope="module", params=FIXTURES)
def golden(request: pytest.FixtureRequest, golden_dir: GoldenFixtures) -> Golden:
    folder = golden_dir / request.param
    checkpoint = open_checkpoint(folder)
    model = load_opened(checkpoint)
    assert isinstance(model, VLM)
    return Golden(
        checkpoint=checkpoint,
        model=model,
        expected=read(folder / "train_expected.json"),
        tensors=load_file(folder / "train_expected.safetensors"),
        context_id=read(folder / "expected.json")["settings"]["img_context_token_id"],
    )


def mean(loss: Loss) -> float:
    return float(loss.total.detach()) / loss.weight


def check_norms(gradients: dict[str, Tensor], expected: dict[str, float]) -> None:
    assert set(gradients) == set(expected)
    norms = {name: float(gradient.norm()) for name, gradient in gradients.items()}
    assert norms == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_an_unpacked_batch(golden: Golden) -> None:
    expected = golden.expected["sft_batch"]
    loss = next_token(golden.model, golden.batch(expected["sample_ids"]))
    assert mean(loss) == pytest.approx(expected["loss"], abs=2e-5)
    gradients = golden.gradients(loss)
    check_norms(gradients, expected["grad_norms"])
    for name, ours in {
        "mlp1.1.bias": gradients["mlp1.1.bias"],
        "class_embedding": gradients["vision_model.embeddings.class_embedding"],
    }.items():
        torch.testing.assert_close(ours, golden.tensors[f"sft_batch.grad.{name}"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_packs(golden: Golden, reduction: Reduction) -> None:
    for pack_ in golden.expected["packed"]["packs"]:
        expected = pack_["reductions"][reduction]
        batch = golden.batch(pack_["sample_ids"])
        loss = next_token(golden.model, batch, reduction=reduction)
        assert mean(loss) == pytest.approx(expected["loss"], abs=2e-5)
        ours_A = token_weights(batch.branches_A, batch.num_branches, reduction)
        theirs_T = torch.tensor(expected["loss_weight"]).flatten()
        torch.testing.assert_close(ours_A, theirs_T[theirs_T > 0])
        if reduction == "square":  # the one whose gradients were recorded
            check_norms(golden.gradients(loss), expected["grad_norms"])


def test_a_batch_without_pictures_has_vision_gradients_of_zero(golden: Golden) -> None:
    text_only = [one["id"] for one in golden.expected["samples"] if not any(one["image_flags"])]
    batch = golden.batch(text_only)
    assert not len(batch.tiles_N3HW)
    gradients = golden.gradients(next_token(golden.model, batch))
    vision = {name for name in gradients if name.startswith(("vision_model.", "mlp1."))}
    assert len(vision) == sum(not name.startswith("llm.") for name, _ in golden.model.named_parameters())
    assert not any(gradients[name].any() for name in vision)
    assert gradients["vision_model.embeddings.class_embedding"].shape == (
        1,
        1,
        golden.model.config.vision.width,
    )
