"""One training step through this package and through transformers + PEFT: tokens/s, memory, utilisation.

Three cases, float32, AdamW, gradients clipped to norm 1:

    lora        InternVL2.5-1B shape (24 layers x 896 of Qwen2, InternViT-300M), rank 16 on all linear
                layers of the language model
    projector   the same shape, only the projector learns
    nano        the shape of internvl-nano, all parameters learn

Both sides read one checkpoint of random weights and train on one batch of examples of very different lengths:
here packed, there padded to the longest with an attention mask, each with its own loss. The losses of
the first step must agree. Every side lives in a process of its own, which takes turns with the other (A B A
B); the fastest matrix product is timed between turns, and utilisation is floating-point operations of the
unpadded batch over seconds over that rate. Memory is the highest point of a process after loading, imports
and weights included. Tokens are those of the examples, vision tokens included, padding not.

    scripts/bench training_against_peft [--case lora projector nano] [--lengths mixed|equal] [--repeat 5]
        [--threads 2] [--shape full|tiny] [--huge-pages ours theirs]

Prints one JSON line per case: medians, ratios, versions, machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import internvl
from internvl import zoo
from internvl.config import ChatConfig
from internvl.data.batch import Batch, pack
from internvl.data.example import Branch, Example
from internvl.models.vlm import VLM
from internvl.ops.linear import product

LENGTHS = {  # tiles and text tokens of every example; a machine of 24 GB holds both sides
    "mixed": ((0, 45), (1, 30), (1, 90), (1, 250), (0, 300)),
    "equal": ((1, 140),) * 5,
}
RANK = 16
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def shape(case: str, size: str) -> ChatConfig:
    config = zoo.find("nano" if case == "nano" else "InternVL2_5-1B").config
    assert isinstance(config, ChatConfig)
    if size == "full":
        return config
    vision = replace(config.vision, width=64, num_heads=2, mlp_width=128, num_layers=4, image_size=56)
    text = replace(config.text, vocab_size=1200, width=128, num_layers=2, num_heads=4, num_kv_heads=2)
    text = replace(text, head_dim=32, mlp_width=256)
    return replace(config, vision=vision, text=text, tiling=replace(config.tiling, tile_size=56))


def examples(config: ChatConfig, lengths: str) -> list[Example]:
    """Random tiles and words; the second half of the text is trained on."""
    generator = torch.Generator().manual_seed(0)
    size, context, found = config.tiling.tile_size, config.text.vocab_size - 1, []
    for index, (tiles, words) in enumerate(LENGTHS[lengths]):
        slots = tiles * config.tokens_per_tile
        text = torch.randint(5, 1000, (words,), generator=generator).tolist()
        found.append(
            Example(
                key=str(index),
                prefix=(*[context] * slots, *text[: words // 2]),
                branches=(Branch(tuple(text[words // 2 :]), (True,) * (words - words // 2)),),
                slots=tuple(range(slots)),
                tiles_N3HW=torch.randn(tiles, 3, size, size, generator=generator) if tiles else None,
            )
        )
    return found


def write_checkpoint(config: ChatConfig, path: Path) -> None:
    from internvl.checkpoints.write import save_model

    with torch.device("meta"):
        model = VLM(config)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if re.search(r"norm\d?\.weight", name) else 0.0, 0.02, generator=generator)
    save_model(model, config, path, layout="hf", image_token_id=config.text.vocab_size - 1)


class Ours:
    def __init__(self, path: Path, case: str, chosen: list[Example]) -> None:
        from internvl.adapt.lora import LoRA, add_adapters
        from internvl.checkpoints.load import load_model
        from internvl.training.objective_spec import NextToken
        from internvl.training.objectives import make_objective
        from internvl.training.optim import make_optimizer
        from internvl.training.recipe import AdamW

        model = load_model(path)
        assert isinstance(model, VLM)
        if case == "lora":
            add_adapters(model, [(r"llm\.layers\..*", LoRA(rank=RANK))])
        trained = {"lora": r".*\.lora_.*", "projector": r"projector\..*", "nano": r".*"}[case]
        rest = [] if case == "nano" else [(".*", None)]
        self.optimizer = make_optimizer(model, [(trained, AdamW(lr=1e-5)), *rest])
        self.objective, self.model = make_objective(NextToken()), model.train()
        self.batch = pack(chosen, model.config.tiling.tile_size)
        self.facts: dict[str, float] = {"tokens": sum(example.size.tokens for example in chosen)}

    def step(self) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.objective(self.model, self.batch)
        (loss.total / loss.weight).backward()
        clip(self.model)
        self.optimizer.step()
        return loss.total.item() / loss.weight

    def first_step(self) -> float:
        """Also counts the floating-point operations, which are the same in every step."""
        count = Count(self.model)
        loss = self.step()
        self.facts["flop"] = count.linear + attention_flop(self.model, self.batch)
        count.remove()
        return loss


class Theirs:
    def __init__(self, path: Path, case: str, chosen: list[Example]) -> None:
        from transformers import InternVLForConditionalGeneration

        model: Any = InternVLForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
        if case == "lora":
            from peft import LoraConfig, get_peft_model

            names = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
            model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=names))
        if case == "projector":
            for name, parameter in model.named_parameters():
                parameter.requires_grad_("multi_modal_projector" in name)
        params = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(params, lr=1e-5, weight_decay=0.0)
        self.model = model.train()
        self.inputs = padded(chosen)
        width = self.inputs["input_ids"].numel()
        self.facts = {"padding": round(1 - float(self.inputs["attention_mask"].sum()) / width, 3)}

    def step(self) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.model(**self.inputs).loss
        loss.backward()
        clip(self.model)
        self.optimizer.step()
        return float(loss.item())

    first_step = step


def clip(model: nn.Module) -> None:
    nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)


def padded(chosen: list[Example]) -> dict[str, Tensor]:
    rows = [(example.prefix, example.branches[0].ids) for example in chosen]
    shape_BT = (len(rows), max(len(prefix) + len(answer) for prefix, answer in rows))
    ids, labels, mask = torch.zeros(shape_BT).long(), torch.full(shape_BT, -100), torch.zeros(shape_BT).long()
    for row, (prefix, answer) in enumerate(rows):
        start, end = len(prefix), len(prefix) + len(answer)
        ids[row, :end], mask[row, :end] = torch.tensor([*prefix, *answer]), 1
        labels[row, start:end] = torch.tensor(answer)
    tiles = [example.tiles_N3HW for example in chosen if example.tiles_N3HW is not None]
    return {
        "input_ids": ids,
        "labels": labels,
        "attention_mask": mask,
        **({"pixel_values": torch.cat(tiles)} if tiles else {}),
    }


class Count:
    """Operations of linear layers: forward, and for each gradient that the case needs. Low-rank factors,
    norms and activations are left out."""

    def __init__(self, model: nn.Module) -> None:
        self.linear = 0.0
        layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
        self.handles = [layer.register_forward_hook(self._add) for layer in layers]

    def _add(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        passes = 1 + inputs[0].requires_grad + layer.weight.requires_grad
        rows = inputs[0].numel() // layer.in_features
        self.linear += 2.0 * passes * rows * layer.in_features * layer.out_features

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def attention_flop(model: VLM, batch: Batch) -> float:
    """Scores and weighted sums; the backward pass has twice the products of the forward one."""
    text, vision = model.config.text, model.config.vision
    pairs = sum((n := common + sum(branches)) * (n + 1) / 2 for common, branches in batch.groups)
    language = 3 * 4.0 * pairs * text.num_heads * text.head_dim * text.num_layers
    passes = 3 if any(parameter.requires_grad for parameter in model.vit.parameters()) else 1
    patches = (model.config.tiling.tile_size // vision.patch_size) ** 2 + 1
    return language + passes * 4.0 * len(batch.tiles_N3HW) * patches**2 * vision.width * len(model.vit.layers)


def serve(options: argparse.Namespace) -> None:
    """A side's process: loads, then takes a step for every line it reads and answers with a line."""
    (case,) = options.case
    chosen = examples(shape(case, options.shape), options.lengths)
    worker = (Ours if options.serve == "ours" else Theirs)(options.path, case, chosen)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of loading is not that of training
    for line in sys.stdin:
        start = time.perf_counter()
        loss = worker.first_step() if line == "first\n" else worker.step()
        seconds = time.perf_counter() - start
        answer = {"seconds": seconds, "loss": loss, "peak": peak_memory(), **worker.facts}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def peak_memory() -> float:
    """GB at the highest point since it was last cleared."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024 / 1e9


class Side:
    """A process that trains, seen from the one that measures."""

    def __init__(self, name: str, path: Path, case: str, options: argparse.Namespace) -> None:
        arguments = ["--serve", name, "--path", str(path), "--case", case]
        for option in ("lengths", "shape", "threads"):
            arguments += [f"--{option}", str(getattr(options, option))]
        self.process = subprocess.Popen(
            [sys.executable, __file__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **QUIET, "THP_MEM_ALLOC_ENABLE": str(int(name in options.huge_pages))},
        )

    def step(self, kind: str = "next") -> dict[str, float]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(kind + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a side ended before its step")
        answer: dict[str, float] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def peak_rate() -> float:
    """FLOP/s of the fastest float32 product, best of five."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 4096)
    return 2 * 1024 * 1024 * 4096 / min(seconds(lambda: product(a, b)) for _ in range(6))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(case: str, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    sides = [Side(name, path, case, options) for name in ("ours", "theirs")]
    first = [side.step("first") for side in sides]
    if abs(first[0]["loss"] - first[1]["loss"]) > 1e-3 * abs(first[1]["loss"]):
        raise SystemExit(f"{case}: the losses differ: {first[0]['loss']} here, {first[1]['loss']} there")
    turns: list[list[dict[str, float]]] = [[], []]
    rates = []
    for _ in range(options.repeat):
        for side, seen in zip(sides, turns, strict=True):
            rates.append(peak_rate())
            seen.append(side.step())
    for side in sides:
        side.close()
    ours, theirs = (statistics.median(turn["seconds"] for turn in seen) for seen in turns)
    memory = [seen[-1]["peak"] for seen in turns]
    tokens, flop, rate = first[0]["tokens"], first[0]["flop"], statistics.median(rates)
    return {
        "what": f"training step, {case}, {options.lengths} lengths",
        "tokens": tokens,
        "padding_there": first[1]["padding"],
        "first_loss": [round(answer["loss"], 5) for answer in first],
        "ours_s": round(ours, 3),
        "transformers_s": round(theirs, 3),
        "ours_tokens_s": round(tokens / ours, 1),
        "transformers_tokens_s": round(tokens / theirs, 1),
        "speed_ratio": round(theirs / ours, 3),
        "ours_gb": round(memory[0], 3),
        "transformers_gb": round(memory[1], 3),
        "memory_ratio": round(memory[0] / memory[1], 3),
        "gflop": round(flop / 1e9),
        "peak_gflops": round(rate / 1e9),
        "ours_utilisation": round(flop / ours / rate, 3),
        "transformers_utilisation": round(flop / theirs / rate, 3),
        "huge_pages": options.huge_pages,
        "repeat": options.repeat,
    }


def machine() -> dict[str, object]:
    import peft
    import transformers

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return {
        "cpu": next(names, platform.processor()),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch_version": torch.__version__,
        "transformers_version": transformers.__version__,
        "peft_version": peft.__version__,
        "internvl_version": internvl.__version__,
    }


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    cases = ("lora", "projector", "nano")
    parser.add_argument("--case", nargs="+", choices=cases, default=list(cases))
    parser.add_argument("--lengths", choices=sorted(LENGTHS), default="mixed")
    parser.add_argument("--shape", choices=("full", "tiny"), default="full")
    sides = ("ours", "theirs")
    parser.add_argument("--huge-pages", nargs="*", choices=sides, default=[], help="sides that use them")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--serve", choices=sides, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.serve:
        serve(options)
        return
    for case in options.case:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint"
            write_checkpoint(shape(case, options.shape), path)
            row = compare(case, path, options)
        sys.stdout.write(json.dumps({**row, **machine()}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
