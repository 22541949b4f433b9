"""What the published recipes share: which parts move, how a step is computed.

Numbers: InternVL 1.5 (arXiv 2404.16821), InternVL 2.5 (arXiv 2412.05271) and the released scripts. A recipe
names a start and no data: give it one (`--data META`). Batch sizes are global; `torchrun` and
`execution.accumulate` divide the work.
"""

from __future__ import annotations

from internvl.data.spec import Batching, DataSpec
from internvl.training.recipe import AdamW, Execution, Rule, Schedule

FROZEN: Rule = (".*", None)
ADAPTERS = r".*\.lora_(down|up|magnitude)"
EXECUTION = Execution(
    autocast="bfloat16", recompute=(r"vit\.layers\.\d+", r"llm\.layers\.\d+"), parallel="fsdp"
)
"""The released scripts shard by DeepSpeed's ZeRO 1 to 3; FSDP takes their place here."""

PERCENT_3 = Schedule(warmup=0.03)
STEPS_100 = Schedule(warmup=100)


def everything(settings: AdamW) -> tuple[Rule, ...]:
    return ((".*", settings),)


def all_but_tower(settings: AdamW) -> tuple[Rule, ...]:
    return ((r"vit\..*", None), (".*", settings))


def all_but_language(settings: AdamW) -> tuple[Rule, ...]:
    return ((r"llm\..*", None), (".*", settings))


def projector(settings: AdamW) -> tuple[Rule, ...]:
    return ((r"projector\..*", settings), FROZEN)


def adapters(settings: AdamW) -> tuple[Rule, ...]:
    return ((ADAPTERS, settings), FROZEN)


def examples(count: int, max_length: int, **options: bool) -> DataSpec:
    """A step of `count` records of at most `max_length` tokens."""
    batching = Batching(examples=count, max_tokens=max_length)
    return DataSpec(max_length=max_length, batching=batching, **options)  # type: ignore[arg-type]


def packs(count: int, max_tokens: int, tiles: int = 48) -> DataSpec:
    """A step of `count` packed sequences."""
    batching = Batching(packs=count, max_tokens=max_tokens, max_tiles=tiles)
    return DataSpec(max_length=max_tokens, batching=batching)
