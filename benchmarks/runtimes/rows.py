"""The rows: what is asked, of whom, and the work that it is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from runtimes import limits
from runtimes.limits import Work

NEW = 64
"""Tokens of an answer."""
SHORT, LONG = 296, 1832
"""Tokens of a prompt with one picture of one tile, and of seven."""
GENAI8, GENAI4 = "openvino genai int8", "openvino genai int4"
LLAMA = ("llama.cpp Q8_0", "llama.cpp Q4_0")
FLOATS = ("internvl float32", "internvl float32 packed", "internvl bfloat16", "transformers float32",
          "openvino genai float32")  # fmt: skip
PACKED = ("internvl int8", "internvl int4", GENAI8, GENAI4, *LLAMA)
TOWERS = ("internvl float32", "internvl float32 packed", "internvl bfloat16", "internvl int8",
          "transformers float32", "openvino float32", "onnxruntime float32", "onnxruntime int8")  # fmt: skip
PROMPTS = ("internvl int8", "transformers float32", "openvino genai float32", GENAI8, *LLAMA)
TILED = ("internvl float32", "internvl int8", "transformers float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """`call` is the method of a side; outputs are compared with those of `reference`."""

    name: str
    what: str
    sides: tuple[str, ...]
    call: str
    arguments: dict[str, Any] = field(default_factory=dict)
    work: Work | None = None
    tokens: int = 0
    """For a rate."""
    is_memory: bool = False
    model: str = "InternVL2_5-1B"
    reference: str = "internvl float32"


def _requests(count: int) -> Work:
    """Together: all pictures and prompts, the weights read once for each token of all."""
    prompts = [limits.vision(1) + limits.prefill(SHORT)] * count
    return sum(prompts, limits.decode(NEW - 1))


def _pictures(tiles: int) -> Work:
    return limits.vision(tiles) + limits.prefill(256 * tiles + 40)


PEERS = (
    Row(name="vision-1", what="one tile to vision tokens", sides=TOWERS,
        call="vision", arguments={"tiles": 1}, work=limits.vision(1)),
    Row(name="vision-7", what="seven tiles to vision tokens", sides=TOWERS,
        call="vision", arguments={"tiles": 7}, work=limits.vision(7)),
    Row(name="prefill-296", what="a prompt of 296 tokens to the first token", sides=PROMPTS,
        call="prefill", arguments={"tokens": SHORT}, work=limits.prefill(SHORT)),
    Row(name="prefill-1832", what="a prompt of 1,832 tokens to the first token", sides=PROMPTS,
        call="prefill", arguments={"tokens": LONG}, work=limits.prefill(LONG)),
    Row(name="decode-float", what="64 tokens behind a prompt of 296, exact", sides=FLOATS, tokens=NEW,
        call="decode", arguments={"tokens": SHORT, "new": NEW}, work=limits.decode(NEW)),
    Row(name="decode-packed", what="64 tokens behind a prompt of 296, 8 and 4 bits", sides=PACKED, tokens=NEW,
        call="decode", arguments={"tokens": SHORT, "new": NEW}, work=limits.decode(NEW)),
    Row(name="request", what="a picture of one tile and 40 tokens to 64 tokens",
        sides=(*PACKED, "transformers float32"), call="request", arguments={"new": NEW}, work=_requests(1)),
    Row(name="request-float", what="the same, exact", sides=FLOATS[1:],
        call="request", arguments={"new": NEW}, work=_requests(1)),
    Row(name="page", what="first token behind 13 tiles, 9 of them blank", sides=TILED,
        call="pictures", arguments={"tiles": 13, "distinct": 5}),
    Row(name="page-full", what="first token behind 13 different tiles", sides=TILED,
        call="pictures", arguments={"tiles": 13, "distinct": 13}, work=_pictures(13)),
    Row(name="video", what="first token behind a still video of 8 frames", sides=TILED,
        call="pictures", arguments={"tiles": 8, "distinct": 1}),
    Row(name="video-moving", what="first token behind 8 different frames", sides=TILED,
        call="pictures", arguments={"tiles": 8, "distinct": 8}, work=_pictures(8)),
    Row(name="memory", what="peak memory of a process that answers one request", is_memory=True,
        sides=(*PACKED, "transformers float32"), call="request", arguments={"new": NEW}),
    Row(name="nano-cold", what="`internvl chat` from nothing to the whole answer of nano, in a new process",
        sides=("internvl chat", "internvl chat int8"), reference="internvl chat", call="chat", model="nano"),
)  # fmt: skip


SERVED = ("internvl float32", "internvl int8", "transformers float32")
BATCHED = (*SERVED, "openvino genai float32", GENAI8, *LLAMA)
NANO = "nano"


def _at_once(count: int, model: str, prefix: str, sides: tuple[str, ...]) -> Row:
    return Row(
        name=f"{prefix}-{count}", what=f"{count} requests at once, {model}", sides=sides, model=model,
        call="requests", arguments={"count": count, "new": NEW}, tokens=count * NEW,
        work=_requests(count) if prefix == "1b" else None,
    )  # fmt: skip


THROUGHPUT = (
    *(_at_once(count, "InternVL2_5-1B", "1b", BATCHED) for count in (1, 4, 16)),
    *(_at_once(count, NANO, "nano", SERVED) for count in (1, 4, 16)),
    Row(name="1b-second-question", what="first token of a second question about a picture, InternVL2_5-1B",
        sides=("internvl float32", "internvl int8", GENAI8, *LLAMA), call="again"),
    Row(name="1b-second-round", what="first token of a second round, InternVL2_5-1B",
        call="second_round", sides=SERVED[:2], arguments={"new": NEW}),
    Row(name="nano-second-question", what="first token of a second question about a picture, nano",
        model=NANO, sides=SERVED[:2], call="again"),
    Row(name="nano-second-round", what="first token of a second round, nano", model=NANO,
        arguments={"new": NEW}, sides=SERVED[:2], call="second_round"),
)  # fmt: skip


def shrink(row: Row) -> Row:
    """The same row as a smoke run, of a tiny model: says whether it works, not how fast it is."""
    arguments = row.arguments | ({"new": 8} if "new" in row.arguments else {})
    model = "nano" if row.model == "nano" else "tiny"
    return replace(row, arguments=arguments, work=None, tokens=0, model=model)
