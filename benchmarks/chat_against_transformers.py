"""One request through this package and through transformers: vision, prefill, decode, memory.

The InternVL2.5-1B shape (InternViT-300M, Qwen2.5-0.5B, 151,674 words) with random weights, float32, two
threads. Both models live in one process and take turns (A B A B), with a matrix product timed
between turns as a yardstick of the machine. Peak memory is taken from a process of its own for each.

The floor, for F the float32 rate of the machine's best product and B its reading bandwidth: vision 726 GFLOP
a tile / F, prefill of 296 tokens 216 GFLOP / F, decode 1.97 GB a token / B.

    scripts/bench chat_against_transformers [--repeat 5] [--threads 2]

Prints one JSON line per quantity: medians, ratio ours/theirs, versions, machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, Qwen2Config

import internvl
from internvl import zoo
from internvl.config import ChatConfig
from internvl.generation.generate import generate
from internvl.generation.prompt import Prompt
from internvl.generation.sampling import Sampling
from internvl.models.vlm import VLM

PROMPT_TOKENS, NEW_TOKENS = 296, 64


def our_model() -> VLM:
    config = zoo.find("InternVL2_5-1B").config
    assert isinstance(config, ChatConfig)
    with torch.device("meta"):
        model = VLM(config)
    return randomise(model.to_empty(device="cpu"))


def their_model() -> InternVLForConditionalGeneration:
    vision = InternVLVisionConfig(attention_bias=True, image_size=[448, 448])
    text = Qwen2Config(
        vocab_size=151674,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        eos_token_id=None,
    )
    config = InternVLConfig(vision_config=vision, text_config=text, tie_word_embeddings=False)
    with torch.device("meta"):
        model = InternVLForConditionalGeneration(config)
    model = randomise(model.to_empty(device="cpu"))
    for module in model.modules():  # rotary tables are buffers, which random weights must not fill
        if hasattr(module, "inv_freq"):
            module.inv_freq = 1e6 ** -(torch.arange(0, 64, 2).float() / 64)
            module.attention_scaling = 1.0
    model.generation_config.eos_token_id = None
    return model


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02, generator=generator)
    return model.eval()


class Ours:
    def __init__(self) -> None:
        self.model = our_model()
        self.x_TD = torch.randn(PROMPT_TOKENS, 896) * 0.02

    def vision(self, tiles: torch.Tensor) -> None:
        self.model.encode_tiles(tiles)

    def generate(self, count: int) -> None:
        prompt = Prompt(self.x_TD, Sampling(max_new_tokens=count))
        (answer,) = generate(self.model.llm, [prompt])
        assert len(answer.ids) == count


class Theirs:
    def __init__(self) -> None:
        self.model = their_model()
        self.ids = torch.randint(0, 1000, (1, PROMPT_TOKENS))

    def vision(self, tiles: torch.Tensor) -> None:
        self.model.get_image_features(pixel_values=tiles)

    def generate(self, count: int) -> None:
        mask = torch.ones_like(self.ids)
        out = self.model.generate(
            self.ids,
            attention_mask=mask,
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
        assert out.shape[1] == PROMPT_TOKENS + count


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(
    name: str, ours: Callable[[], None], theirs: Callable[[], None], repeat: int
) -> dict[str, object]:
    """Medians of alternated runs after one warm-up of each."""
    square = torch.randn(1536, 1536)
    yardstick = [seconds(lambda: square @ square) for _ in range(3)]
    ours(), theirs()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeat):
        times[0].append(seconds(ours))
        yardstick.append(seconds(lambda: square @ square))
        times[1].append(seconds(theirs))
        yardstick.append(seconds(lambda: square @ square))
    a, b = map(statistics.median, times)
    rates = [2 * 1536**3 / value / 1e9 for value in yardstick[1:]]
    return {
        "what": name,
        "ours_s": round(a, 4),
        "transformers_s": round(b, 4),
        "ratio": round(a / b, 3),
        "repeat": repeat,
        "yardstick_gflops": [round(min(rates)), round(statistics.median(rates)), round(max(rates))],
    }


def peak_memory(which: str, threads: int) -> float:
    """GB at the highest point of a process that loads nothing else and answers once."""
    out = subprocess.run(
        [sys.executable, __file__, "--memory-of", which, "--threads", str(threads)],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(out.stdout.strip().splitlines()[-1])


def answer_once(which: str) -> None:
    side = Ours() if which == "ours" else Theirs()
    with torch.inference_mode():
        side.vision(torch.randn(1, 3, 448, 448))
        side.generate(8)
    sys.stdout.write(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.3f}\n")


def machine() -> dict[str, object]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    return {
        "cpu": model,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch_version": torch.__version__,
        "transformers_version": transformers.__version__,
        "internvl_version": internvl.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-of", choices=["ours", "theirs"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        answer_once(options.memory_of)
        return
    memory = {which: peak_memory(which, options.threads) for which in ("ours", "theirs")}
    rows: list[dict[str, object]] = [
        {
            "what": "peak memory, GB",
            "ours": memory["ours"],
            "transformers": memory["theirs"],
            "ratio": round(memory["ours"] / memory["theirs"], 3),
        }
    ]
    ours, theirs = Ours(), Theirs()
    with torch.inference_mode():
        for count in (1, 7):
            tiles = torch.randn(count, 3, 448, 448)
            repeat = options.repeat if count == 1 else min(3, options.repeat)
            rows.append(
                compare(
                    f"vision, {count} tile(s)",
                    lambda t=tiles: ours.vision(t),
                    lambda t=tiles: theirs.vision(t),
                    repeat,
                )
            )
        rows.append(
            compare(
                f"prefill {PROMPT_TOKENS}",
                lambda: ours.generate(1),
                lambda: theirs.generate(1),
                options.repeat,
            )
        )
        rows.append(
            compare(
                f"prefill {PROMPT_TOKENS} + {NEW_TOKENS} tokens",
                lambda: ours.generate(1 + NEW_TOKENS),
                lambda: theirs.generate(1 + NEW_TOKENS),
                options.repeat,
            )
        )
    rows.append(decode_row(rows[-2], rows[-1]))
    for row in rows:
        sys.stdout.write(json.dumps({**row, **machine()}) + "\n")


def decode_row(prefill: dict[str, object], whole: dict[str, object]) -> dict[str, object]:
    """Tokens a second between the first and the last token."""
    rates = {
        side: NEW_TOKENS / (float(str(whole[side])) - float(str(prefill[side])))
        for side in ("ours_s", "transformers_s")
    }
    return {
        "what": "decode, tokens/s",
        "ours": round(rates["ours_s"], 2),
        "transformers": round(rates["transformers_s"], 2),
        "ratio": round(rates["ours_s"] / rates["transformers_s"], 3),
    }


if __name__ == "__main__":
    main()
