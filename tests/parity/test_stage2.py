"""Losses and gradients of stage 2 and of retrieval fine-tuning against those of the released code."""

from __future__ import annotations

import json
from dataclasses import dataclass
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
from internvl.models.dual_encoder import DualEncoder
from internvl.training.dual_forward import embed_texts, query_states
from internvl.training.loss import Loss
from internvl.training.objective_spec import Stage2
from internvl.training.stage2 import Matches, compare, match, total_loss, write
from internvl.training.world import World
from tests.conftest import GoldenFixtures

PRETRAINING = Stage2()
RETRIEVAL = Stage2(itg=0, backbone=True, soft_targets=True)
GIVEN = 13
"""Tokens of the released caption prompt that are not predicted: all but its last."""

Texts = list[list[int]]


@dataclass(frozen=True)
class Golden:
    checkpoint: Checkpoint
    model: DualEncoder
    expected: dict[str, Any]
    tensors: dict[str, Tensor]

    def texts(self, name: str, ignored: bool = False) -> Texts:
        """Unpadded ids whose tensors begin with `name`; `ignored`: of the batch with rows to ignore."""
        ids, mask = (self._tensor(f"{name}{kind}", ignored) for kind in ("input_ids", "attention_mask"))
        return [row[seen.bool()].tolist() for row, seen in zip(ids, mask, strict=True)]

    def _tensor(self, name: str, ignored: bool) -> Tensor:
        changed = self.tensors.get(f"train_ignored_rows.{name}") if ignored else None
        return self.tensors[f"train.{name}"] if changed is None else changed

    def loss(self, spec: Stage2, matches: Matches, contrastive: Texts, **compared: Tensor) -> Loss:
        """The objective's parts on matches that are given."""
        model, world = self.model, World()
        features = model.vit(self.tensors["pixel_values"])
        texts = embed_texts(model, contrastive)
        captions = [(ids, GIVEN) for ids in self.texts("")] if spec.itg else []
        states = query_states(model, features, captions, matches.ids)
        images = [model.query_pool(states.alone_BQD)]
        if spec.backbone:
            images.append(model.pool_images(features))
        parts = {
            "itc": compare(model, images, texts, spec=spec, world=world, **compared)[0],
            "itm": match(model, states, matches)[0],
        }
        if spec.itg:
            parts["itg"] = write(model, states)
        return total_loss(parts, spec, len(contrastive), world)

    def check(self, loss: Loss, variant: str) -> None:
        expected = self.expected[variant]
        assert float(loss.total.detach()) / loss.weight == pytest.approx(expected["loss"], abs=2e-5)
        for name, value in loss.metrics.items():
            assert value / loss.weight == pytest.approx(expected[f"loss_{name}"], abs=2e-5), name
        if "grad_norms" in expected:
            norms = {name: float(gradient.norm()) for name, gradient in self.gradients(loss).items()}
            assert norms == pytest.approx(expected["grad_norms"], rel=1e-3, abs=1e-5)

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


@pytest.fixture(scope="module")
def golden(golden_dir: GoldenFixtures) -> Golden:
    folder = golden_dir / "internvl_14b"
    checkpoint = open_checkpoint(folder)
    model = load_opened(checkpoint)
    assert isinstance(model, DualEncoder)
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))["train"]
    return Golden(checkpoint, model, expected, load_file(folder / "expected.safetensors"))


def half(golden: Golden, ignored: bool = False) -> Matches:
    """Wrong texts for the first half of the pictures, right ones for the second; empty ones do not count."""
    right_B = torch.tensor([False, False, True, True])
    texts = golden.texts("negative_", ignored)[:2] + golden.texts("positive_")[2:]
    counts_B = torch.tensor([len(ids) > 2 for ids in texts])
    return Matches([[ids] for ids in texts], right_B[:, None], counts_B[:, None])


@pytest.mark.parametrize(("variant", "smoothing"), [("stage2", 0.0), ("stage2_label_smoothing_0.1", 0.1)])
def test_pretraining(golden: Golden, variant: str, smoothing: float) -> None:
    spec = Stage2(label_smoothing=smoothing)
    golden.check(golden.loss(spec, half(golden), golden.texts("summarize_")), variant)


def test_rows_that_do_not_count(golden: Golden) -> None:
    """An empty wrong text, and a pair whose text is empty but for the prefix."""
    texts = golden.texts("summarize_", ignored=True)
    counts_B = torch.tensor([len(ids) != 5 for ids in texts])
    assert counts_B.sum() == 3
    matches = half(golden, ignored=True)
    assert matches.counts_BM.sum() == 3
    golden.check(golden.loss(PRETRAINING, matches, texts, counts_B=counts_B), "stage2_ignored_rows")


def test_retrieval(golden: Golden) -> None:
    wrong, right = golden.texts("negative_"), golden.texts("positive_")
    belongs_BM = torch.tensor([False, True]).expand(4, 2)
    matches = Matches(list(zip(wrong, right, strict=True)), belongs_BM, torch.ones_like(belongs_BM))
    image_ids_B = torch.tensor(golden.expected["stage2_retrieval"]["image_ids"])
    loss = golden.loss(RETRIEVAL, matches, golden.texts("summarize_"), image_ids_B=image_ids_B)
    golden.check(loss, "stage2_retrieval")
