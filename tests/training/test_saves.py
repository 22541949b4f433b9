"""Checkpoints of one process: exact, complete or absent, kept by policy, refused where they do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from internvl.errors import TrainingError
from internvl.training.saves import Saves
from internvl.training.shards import Stored, _empty_moments, canonical, trained
from internvl.training.world import World


class Averages:
    def __init__(self, model: nn.Module) -> None:
        self.values = {name: p.detach().clone() for name, p in trained(model).items()}

    def tensors(self) -> Mapping[str, Tensor]:
        return self.values


class Run:
    """A layer that is trained, one that is frozen, AdamW, and where its checkpoints go."""

    def __init__(self, folder: Path, *, keep: int = 2, width: int = 5) -> None:
        self.model = nn.ModuleDict({"a": nn.Linear(3, width), "b": nn.Linear(width, 2)})
        self.model["b"].requires_grad_(False)
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=0.1)
        self.ema = Averages(self.model)
        self.saves = Saves(folder, World(), keep=keep)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.optimizer.zero_grad()
            self.model["b"](self.model["a"](torch.ones(4, 3))).square().sum().backward()
            self.optimizer.step()
            for name, value in self.ema.values.items():
                value.lerp_(trained(self.model)[name].detach(), 0.1)

    def save(self, step: int, *, wait: bool = True, **facts: Any) -> Path:
        self.saves.save(step, self.model, self.optimizer, facts, ema=self.ema, wait=wait)
        return self.saves.folder / f"step-{step:08d}"

    def load(self, path: Path) -> Mapping[str, Any]:
        return self.saves.load(path, self.model, self.optimizer, self.ema)

    def state(self) -> dict[str, Tensor]:
        params = trained(self.model)
        values = {f"model/{name}": p.detach() for name, p in params.items()}
        for name, parameter in params.items():
            moments = self.optimizer.state[parameter]
            values.update({f"{key}/{name}": value for key, value in moments.items()})
        return {**values, **{f"ema/{name}": value for name, value in self.ema.values.items()}}


def assert_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step(3)
    path = run.save(3, position=17, delta=0.1 + 0.2, nothing=None)
    again = Run(tmp_path)
    assert again.saves.latest() == path
    assert again.load(path) == {"position": 17, "delta": 0.1 + 0.2, "nothing": None}
    assert again.saves.latest_step == 3
    assert_equal(again.state(), run.state())
    again.model["b"].load_state_dict(run.model["b"].state_dict())
    run.step(2)
    again.step(2)
    assert_equal(again.state(), run.state())


def test_what_is_saved_is_the_state_of_the_call(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step()
    before = {name: value.clone() for name, value in run.state().items()}
    path = run.save(1, wait=False)
    run.step(5)
    run.saves.wait()
    again = Run(tmp_path)
    again.load(path)
    assert_equal(again.state(), before)


def test_a_run_that_made_no_step_is_saved_too(tmp_path: Path) -> None:
    run = Run(tmp_path)
    path = run.save(0)
    again = Run(tmp_path)
    again.step()
    again.load(path)
    assert_equal(again.state(), run.state())


def test_moments_of_a_scalar_lie_where_it_lies() -> None:
    """On the CPU they would end the first step of a run that goes on on a GPU; the count may lie there."""
    scale = nn.Parameter(torch.zeros((), device="meta"))
    keys = ("exp_avg", "exp_avg_sq", "step")
    stored = {f"optimizer/{key}/logit_scale": Stored((), torch.float32) for key in keys}
    moments = _empty_moments({"logit_scale": scale}, torch.optim.AdamW([scale]), stored)["logit_scale"]
    assert {key: value.device.type for key, value in moments.items()} == {
        "exp_avg": "meta",
        "exp_avg_sq": "meta",
        "step": "cpu",
    }


def test_only_trained_parameters_are_saved(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step()
    path = run.save(1)
    (file,) = path.glob("*.safetensors")
    assert sorted(load_file(file)) == sorted(
        f"{kind}/a.{part}"
        for kind in ("model", "ema", "optimizer/step", "optimizer/exp_avg", "optimizer/exp_avg_sq")
        for part in ("weight", "bias")
    )
    assert sorted(file.name for file in path.iterdir()) == ["checkpoint.json", file.name]


def test_the_last_and_the_best_stay(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=2)
    assert run.saves.latest() is None
    assert run.saves.best() is None
    for step in range(1, 7):
        run.save(step)
        if step in (1, 2):
            run.saves.keep_best(step)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.json",
        *(f"step-{step:08d}" for step in (2, 5, 6)),
    ]
    assert run.saves.best() == tmp_path / "step-00000002"
    with pytest.raises(TrainingError, match="step 3 has no checkpoint"):
        run.saves.keep_best(3)


def test_a_step_saved_again_is_replaced(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.save(1, word="old")
    run.step()
    path = run.save(1, word="new")
    again = Run(tmp_path)
    assert again.load(path) == {"word": "new"}
    assert_equal(again.state(), run.state())
    assert [file.name for file in tmp_path.iterdir()] == ["step-00000001"]


def test_a_kill_between_old_and_new_loses_nothing(tmp_path: Path) -> None:
    """The old one had been moved away, the new one was not there yet."""
    path = Run(tmp_path).save(1, word="old")
    shutil.copytree(path, tmp_path / "step-00000001.partial")
    path.rename(tmp_path / "step-00000001.replaced.partial")
    again = Run(tmp_path)
    assert again.saves.latest() == path
    assert again.load(path) == {"word": "old"}


def test_damaged_checkpoints_are_no_new_beginning(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.saves.refuse_damaged()
    path = run.save(1)
    run.saves.refuse_damaged()
    file = next(path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(TrainingError, match=r"step-00000001 is no complete checkpoint: .* bytes"):
        run.saves.refuse_damaged()


def test_an_earlier_step_is_not_saved_beside_later_ones(tmp_path: Path) -> None:
    Run(tmp_path).save(5)
    with pytest.raises(TrainingError, match="already has step 5, and step 2"):
        Run(tmp_path).save(2)


def test_unfinished_folders_do_not_count_and_are_removed(tmp_path: Path) -> None:
    run = Run(tmp_path)
    path = run.save(1)
    shutil.copytree(path, tmp_path / "step-00000002.partial")
    shutil.copytree(path, tmp_path / "step-2-of-mine")
    assert run.saves.latest() == path
    run.save(2)
    assert sorted(item.name for item in tmp_path.iterdir()) == [
        "step-00000001",
        "step-00000002",
        "step-2-of-mine",
    ]


def test_a_failed_write_is_told_at_the_next_occasion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    path = run.save(1)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    run.save(2, wait=False)
    with pytest.raises(TrainingError, match=r"step 2 in .* was not written: .*No space left"):
        run.saves.wait()
    assert run.saves.latest() == path
    monkeypatch.undo()
    assert run.save(3).is_dir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 6}, r"another recipe: 8 tensors differ, first ema/a\.bias \(checkpoint \(5,\)"),
        ({"frozen": False}, r"first ema/b\.bias \(checkpoint nothing, this run \(2,\)"),
        ({"dtype": torch.bfloat16}, r"first model/a\.bias .* torch\.float32, this run .* torch\.bfloat16"),
        ({"ema": False}, r"recipe: 2 tensors differ, first ema/a\.bias .* this run nothing"),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused(
    tmp_path: Path, change: Mapping[str, Any], message: str
) -> None:
    run = Run(tmp_path)
    run.step()
    path = run.save(1)
    other = Run(tmp_path, width=change.get("width", 5))
    other.model["b"].requires_grad_(not change.get("frozen", True))
    other.ema = Averages(other.model)
    other.model.to(change.get("dtype", torch.float32))
    before = {name: p.detach().clone() for name, p in trained(other.model).items()}
    with pytest.raises(TrainingError, match=message):
        other.saves.load(path, other.model, other.optimizer, other.ema if change.get("ema", True) else None)
    assert_equal(before, {name: p.detach() for name, p in trained(other.model).items()})


def _truncate(path: Path) -> None:
    (shard,) = path.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-8])


def _swap(path: Path) -> None:
    """The same number of bytes, but no tensors."""
    (shard,) = path.glob("*.safetensors")
    shard.write_bytes(b"\xff" * shard.stat().st_size)


def _add(path: Path) -> None:
    save_file({"model/a.bias": torch.zeros(5)}, path / "more.safetensors")


def _index(text: str) -> Any:
    return lambda path: (path / "checkpoint.json").write_text(text)


DAMAGE = {
    "truncated": (_truncate, "has .* bytes, the index says"),
    "swapped": (_swap, "cannot be read"),
    "another shard": (_add, r"more\.safetensors has .* the index says None"),
    "no index": (lambda path: (path / "checkpoint.json").unlink(), "it has no checkpoint.json"),
    "no JSON": (_index("{"), "cannot be read"),
    "deep JSON": (_index("[" * 100_000), "cannot be read"),
    "list": (_index("[]"), "no JSON object"),
    "format": (_index('{"format": 9}'), "its format is 9"),
    "fields": (_index('{"format": 1, "step": "x"}'), "lacks step, facts or files"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    run = Run(tmp_path)
    first = run.save(1)
    path = run.save(2)
    do, message = DAMAGE[damage]
    do(path)
    with pytest.raises(TrainingError, match=message):
        run.load(path)
    if damage != "swapped":
        assert run.saves.latest() == first


def test_a_tensor_that_is_not_whole_is_named(tmp_path: Path) -> None:
    """Offsets in a shard's header are another's word: they must add up."""
    run = Run(tmp_path)
    path = run.save(1)
    (shard,) = path.glob("*.safetensors")
    tensors = load_file(shard)
    offsets = {name: {"saved_offsets": [0] * value.dim()} for name, value in tensors.items()}
    offsets["model/a.bias"] = {"saved_offsets": [1000]}
    save_file(tensors, shard, {"DCP_SHARDING_INFO": json.dumps(offsets)})
    index = json.loads((path / "checkpoint.json").read_text())
    index["files"] = {shard.name: shard.stat().st_size}
    (path / "checkpoint.json").write_text(json.dumps(index))
    with pytest.raises(TrainingError, match=r"has 5 of the 1005 values of model/a\.bias"):
        run.load(path)


def test_an_optimizer_of_other_parameters_is_refused(tmp_path: Path) -> None:
    run, other = Run(tmp_path), Run(tmp_path)
    other.step()
    with pytest.raises(TrainingError, match="2 parameters that are not the model's"):
        run.saves.save(1, run.model, other.optimizer, {})


@pytest.mark.parametrize(
    "name",
    [
        "llm.layers.0.attn.qkv.weight",
        "module.model.llm.layers.0.attn.qkv.weight",
        "model.llm.layers.0._checkpoint_wrapped_module.attn.qkv.weight",
        "module.llm.layers.0._orig_mod.attn.qkv.weight",
    ],
)
def test_names_lose_what_wrapping_put_there(name: str) -> None:
    assert canonical(name) == "llm.layers.0.attn.qkv.weight"
