"""The checkpoint that every side begins from, and the questions as its tokenizer has them."""

from __future__ import annotations

import string
from dataclasses import replace
from pathlib import Path

import internvl
from internvl import zoo
from internvl.api.chat import ChatModel
from internvl.cli.stand_in import write_checkpoint
from internvl.config import IMG_CONTEXT, IMG_END, IMG_START, ChatConfig
from runtimes.workload import QUESTIONS, Workload


def write(name: str, target: Path) -> None:
    """`name` of the zoo with random weights, in bfloat16; "nano" with its own; "tiny" for smoke runs."""
    config = zoo.find("InternVL2_5-1B" if name == "tiny" else name).config
    assert isinstance(config, ChatConfig)
    if name == "tiny":
        config = shrink(config)
    if name == "nano":
        internvl.save(internvl.load("nano"), target)
    else:
        write_checkpoint(config, target)
    model = internvl.load(target)
    assert isinstance(model, ChatModel)
    tokenizer = model.processor.tokenizer

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, bos=False, eos=False).ids)

    Workload(
        tile_size=config.tiling.tile_size,
        tokens_per_tile=config.tokens_per_tile,
        start=tokenizer.token_id(IMG_START),
        slot=tokenizer.token_id(IMG_CONTEXT),
        end=tokenizer.token_id(IMG_END),
        break_ids=ids("\n"),
        letters=tuple(ids(letter)[-1] for letter in string.ascii_lowercase),
        questions=tuple(map(ids, QUESTIONS)),
    ).save(target / "workload.json")


def shrink(config: ChatConfig) -> ChatConfig:
    """A few narrow layers, of widths that all formats can pack. Four of vision, since the converter of
    llama.cpp counts the projector's among them."""
    return replace(
        config,
        vision=replace(config.vision, width=128, num_layers=4, num_heads=2, mlp_width=256),
        text=replace(
            config.text,
            width=128,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            mlp_width=256,
            vocab_size=512,
            bos_id=None,
        ),
    )
