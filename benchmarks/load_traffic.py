"""The requests of `load.py`: what is sent, how it is read, and which statuses it may end in.

Drawn from a random number generator alone, so that a seed gives the same requests whatever the server does.
Knows no HTTP.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

import numpy as np
from PIL import Image

CHAT = "/v1/chat/completions"
LEFT = 0
"""The status of a request whose client left before it had one."""

Way = Literal["whole", "stream", "slow", "cancel", "leave"]
"""Read at once; as events; an event a second; a few events, then gone; gone after a moment, answer or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """`body` None is a GET. `after` are events read before a client that cancels is gone, or seconds before
    one that leaves is. `check` says what is wrong with a whole answer."""

    path: str = CHAT
    body: bytes | None
    way: Way = "whole"
    after: float = 0.0
    check: Callable[[Mapping[str, Any]], str | None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Kind:
    """Beside its `statuses`, any request may be refused: 429 or 503 with Retry-After."""

    name: str
    weight: int
    statuses: tuple[int, ...]
    draw: Callable[[Traffic], Ask]


class Traffic:
    """One client's requests: the next is drawn when the last is done."""

    def __init__(self, seed: int, pool: Sequence[str], model: str, max_model_len: int) -> None:
        self.random, self.pool, self.model, self.max_model_len = Random(seed), pool, model, max_model_len

    def draw(self) -> tuple[Kind, Ask]:
        (kind,) = self.random.choices(KINDS, [kind.weight for kind in KINDS])
        return kind, kind.draw(self)

    def words(self, count: int) -> str:
        return " ".join(self.random.choices(SENTENCE.split(), k=count))

    def chat(self, *parts: Mapping[str, Any], words: int = 12, **fields: Any) -> bytes:
        """A body: pictures, then some words."""
        content = [*parts, {"type": "text", "text": self.words(words)}]
        messages = [{"role": "user", "content": content}]
        body = {"model": self.model, "messages": messages, "max_tokens": self.random.randint(4, 32), **fields}
        return json.dumps(body).encode()

    def stream(self, *parts: Mapping[str, Any], **fields: Any) -> bytes:
        return self.chat(*parts, stream=True, stream_options={"include_usage": True}, **fields)

    def picture(self) -> dict[str, Any]:
        """Two of three are known already."""
        if self.random.random() < 0.67:
            return shown(self.random.choice(self.pool))
        return shown(data_url(jpeg(self.random.randrange(2**32), 160, 120)))


def pictures(seed: int) -> list[str]:
    """data: addresses of pictures of all sizes."""
    sizes = [(16, 16), (64, 48), (224, 224), (640, 480), (1024, 768), (1920, 1080), (300, 1500), (1500, 200)]
    return [data_url(jpeg(seed + index, *sizes[index % len(sizes)])) for index in range(2 * len(sizes))]


def jpeg(seed: int, width: int, height: int) -> bytes:
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(blocks).resize((width, height)).save(file, "JPEG")
    return file.getvalue()


def data_url(content: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


def shown(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def has_schema(answer: Mapping[str, Any]) -> str | None:
    """Of an answer that was not cut short."""
    choice = answer["choices"][0]
    if choice["finish_reason"] == "length":
        return None
    found = json.loads(choice["message"]["content"])
    is_right = set(found) == {"animal", "count"} and found["animal"] in ("cat", "dog")
    return None if is_right else f"the answer does not follow its schema: {found}"


def has_call(answer: Mapping[str, Any]) -> str | None:
    """Of an answer that was not cut short."""
    choice = answer["choices"][0]
    if choice["finish_reason"] == "length":
        return None
    calls = choice["message"].get("tool_calls") or []
    is_right = len(calls) == 1 and set(json.loads(calls[0]["function"]["arguments"])) == {"animal", "count"}
    return None if is_right else f"not one call as its schema says: {calls}"


def schema(traffic: Traffic) -> Ask:
    form = {"type": "json_schema", "json_schema": {"name": "animals", "schema": ANIMALS}}
    return Ask(body=traffic.chat(traffic.picture(), response_format=form, max_tokens=48), check=has_schema)


def tools(traffic: Traffic) -> Ask:
    tool = {"type": "function", "function": {"name": "count", "parameters": ANIMALS}}
    body = traffic.chat(tools=[tool], tool_choice="required", max_tokens=64)
    return Ask(body=body, check=has_call)


def completion(traffic: Traffic) -> Ask:
    body = {"model": traffic.model, "prompt": [traffic.words(9), traffic.words(5)], "max_tokens": 8}
    return Ask(path="/v1/completions", body=json.dumps(body).encode())


def response(traffic: Traffic) -> Ask:
    body = {"model": traffic.model, "input": traffic.words(9), "max_output_tokens": 8}
    return Ask(path="/v1/responses", body=json.dumps(body).encode())


def bad_json(traffic: Traffic) -> Ask:
    body = traffic.chat()
    return Ask(
        body=traffic.random.choice([b"", b"[1, 2", b"\xff\xfe", b"{}", b"null", body[: len(body) // 2]])
    )


def unknown_field(traffic: Traffic) -> Ask:
    return Ask(body=traffic.chat(**{traffic.random.choice(["verbosity", "no_such", "__class__"]): 1}))


def broken_picture(traffic: Traffic) -> Ask:
    whole = jpeg(traffic.random.randrange(2**32), 200, 200)
    half, junk = whole[: len(whole) // 2], traffic.random.randbytes(300)
    broken = data_url(traffic.random.choice([half, junk, whole[:20], b""]))
    return Ask(body=traffic.chat(traffic.picture(), shown(broken)))


def several(traffic: Traffic) -> Ask:
    count = traffic.random.randint(2, 6)
    return Ask(body=traffic.stream(*(traffic.picture() for _ in range(count))), way="stream")


def slow(traffic: Traffic) -> Ask:
    return Ask(body=traffic.stream(max_tokens=10, logprobs=True, top_logprobs=20), way="slow")


def cancelled(traffic: Traffic) -> Ask:
    body = traffic.stream(traffic.picture(), max_tokens=200)
    return Ask(body=body, way="cancel", after=traffic.random.randint(1, 8))


def leaving(traffic: Traffic) -> Ask:
    """Often while it waits or while its pictures are encoded."""
    fields = {"stream": True} if traffic.random.random() < 0.5 else {}
    body = traffic.chat(traffic.picture(), traffic.picture(), max_tokens=200, **fields)
    return Ask(body=body, way="leave", after=traffic.random.uniform(0, 2))


def no_vectors(traffic: Traffic) -> Ask:
    body = {"model": traffic.model, "input": traffic.words(5)}
    return Ask(path="/v1/embeddings", body=json.dumps(body).encode())


SENTENCE = "a of the photo what is red cat dog left tell me about every house in this street now and then"
ANIMALS: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "animal": {"enum": ["cat", "dog"]},
        "count": {"type": "integer", "maximum": 9, "minimum": 0},
    },
    "required": ["animal", "count"],
    "additionalProperties": False,
}
FORBIDDEN = (
    "http://169.254.169.254/latest/meta-data", "http://127.0.0.1:22/", "http://[::1]/x", "file:///etc/passwd",
    "https://example.com/a.png", "ftp://example.com/a", "file-../../etc/passwd", "data:image/png;base64,@@",
)  # fmt: skip

KINDS = (
    Kind("text, streamed", 14, (200,), lambda t: Ask(body=t.stream(), way="stream")),
    Kind("text", 8, (200,), lambda t: Ask(body=t.chat())),
    Kind("a picture, streamed", 14, (200,), lambda t: Ask(body=t.stream(t.picture()), way="stream")),
    Kind("a picture", 6, (200,), lambda t: Ask(body=t.chat(t.picture()))),
    Kind("2 to 6 pictures", 6, (200,), several),
    Kind("a long prompt", 2, (200,), lambda t: Ask(body=t.stream(words=t.max_model_len // 8), way="stream")),
    Kind("JSON schema", 4, (200,), schema),
    Kind("tools", 4, (200,), tools),
    Kind("completion", 3, (200,), completion),
    Kind("response", 3, (200,), response),
    Kind("slow reader", 2, (200,), slow),
    Kind("cancelled in mid-stream", 6, (200,), cancelled),
    Kind("gone after a moment", 6, (200, LEFT), leaving),
    Kind("bad JSON", 3, (400,), bad_json),
    Kind("unknown field", 2, (400,), unknown_field),
    Kind("too long", 2, (400,), lambda t: Ask(body=t.chat(words=2 * t.max_model_len))),
    Kind("broken picture", 3, (400,), broken_picture),
    Kind("forbidden address", 3, (400, 404), lambda t: Ask(body=t.chat(shown(t.random.choice(FORBIDDEN))))),
    Kind("no such model", 1, (404,), lambda t: Ask(body=t.chat(model="no-such-model"))),
    Kind("embeddings", 2, (404,), no_vectors),
    Kind("health", 3, (200,), lambda _: Ask(path="/health", body=None)),
    Kind("metrics", 3, (200,), lambda _: Ask(path="/metrics", body=None)),
)
"""`weight` is its share of all requests."""
