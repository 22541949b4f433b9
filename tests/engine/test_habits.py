"""What an engine may be set to do: adapters, int8 keys and values, answers that nothing else changes."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from internvl.adapt.lora import LoRA, add_adapters
from internvl.engine.engine import Engine
from internvl.engine.paged_cache import Int8Store
from internvl.engine.request import EngineRequest
from internvl.engine.settings import EngineSettings
from internvl.engine.towers import find_towers
from internvl.errors import InputError, UnknownNameError
from internvl.models.vlm import VLM
from tests.engine.tiny import (
    SLOT,
    expected,
    finish,
    ids_of,
    last_of,
    make_engine,
    make_image,
    make_request,
)
from tests.generation.tiny import CONFIG, letters


def adapted(vlm: VLM, pattern: str, seed: int) -> VLM:
    """A model that shares the weights of `vlm` and has a random adapter."""
    shared = {id(tensor): tensor for tensor in (*vlm.parameters(), *vlm.buffers())}
    made = copy.deepcopy(vlm, shared)
    generator = torch.Generator().manual_seed(seed)
    add_adapters(made, [(pattern, LoRA(rank=2))], generator)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_up" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return made.eval()


def test_each_request_gets_its_adapter(vlm: VLM) -> None:
    models = {"words": adapted(vlm, r"llm\..*", 1), "eyes": adapted(vlm, r"(vit|projector)\..*", 2)}
    assert find_towers({"": vlm, **models}) == {"": "", "words": "", "eyes": "eyes"}
    engine = Engine(
        vlm,
        decode=letters,
        slot_id=SLOT,
        adapters=models,
        settings=EngineSettings(page_size=4, num_pages=64, max_running=8, max_step_tokens=16),
    )
    requests = [
        make_request(f"{name}-{turn}", [1, 2, 3], [make_image(1)], max_new_tokens=8, adapter=name or None)
        for turn in range(2)
        for name in ("", "words", "eyes")
    ]
    deltas = []
    for request in requests:
        engine.submit(request)
        deltas += engine.step()
    deltas += finish(engine)
    for request in requests:
        answer = expected(models.get(request.adapter or "", vlm), request)
        assert ids_of(deltas, request.key) == answer.ids
    assert len({ids_of(deltas, f"{name}-0") for name in ("", "words", "eyes")}) == 3
    assert engine.stats().tiles == 2  # the tower of the base model sees for two of them
    with pytest.raises(UnknownNameError, match="no adapter 'nose' here; there is eyes, words"):
        engine.submit(replace(requests[0], adapter="nose"))


def test_int8_keys_and_values_are_near(vlm: VLM) -> None:
    store = Int8Store(CONFIG, 8, torch.float32, torch.device("cpu"))
    x_KTD = torch.randn(2, 5, 4)
    x_KTD[0, 0] = 0
    where_T = torch.tensor([6, 1, 2, 3, 4])
    store.write(1, where_T, x_KTD)
    read = store.read(1, [(6, 7), (1, 5)])
    assert ((read - x_KTD).abs() <= x_KTD.abs().amax(-1, keepdim=True) / 254 + 1e-6).all()
    engine = make_engine(vlm, kv_format="int8")
    plain = make_engine(vlm)
    request = make_request("a", [1, 2, 3], max_new_tokens=8, logprobs=1)
    assert engine.plan(request).cache_bytes < plain.plan(request).cache_bytes
    engine.submit(request)
    first = next(delta.token for delta in finish(engine) if delta.token)
    want = expected(vlm, request).logprobs[0]
    assert first.logprob is not None
    assert first.logprob.logprob == pytest.approx(want.logprob, abs=0.2)


def answers_of(vlm: VLM, requests: list[EngineRequest], **settings: Any) -> dict[str, list[float]]:
    """The log-probabilities of every answer."""
    engine = make_engine(vlm, **settings)
    for request in requests:
        engine.submit(request)
    deltas = finish(engine)
    found: dict[str, list[float]] = {request.key: [] for request in requests}
    for delta in deltas:
        if delta.token and delta.token.logprob:
            found[delta.key].append(delta.token.logprob.logprob)
    return found


def test_a_batch_invariant_answer_is_the_same_in_any_company(vlm: VLM) -> None:
    one = make_request("one", range(23), [make_image(1, 2)], max_new_tokens=9, logprobs=1)
    others = [
        make_request(str(k), range(k, 2 * k + 1), [make_image(k)], max_new_tokens=7, logprobs=1)
        for k in range(1, 6)
    ]
    again = replace(one, key="again")
    alone = answers_of(vlm, [one], is_batch_invariant=True)
    company = answers_of(vlm, [*others, one, again], is_batch_invariant=True, num_pages=40, max_step_tiles=3)
    assert company["one"] == alone["one"]  # every bit
    assert company["again"] == alone["one"]
    assert expected(vlm, one).ids == ids_of(finish_one(vlm, one), "one")


def finish_one(vlm: VLM, request: EngineRequest) -> list[Any]:
    engine = make_engine(vlm, is_batch_invariant=True)
    engine.submit(request)
    deltas = finish(engine)
    assert last_of(deltas, request.key).finish_reason == "length"
    return deltas


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(InputError, match="max_step_tokens of at least max_running"):
        EngineSettings(is_batch_invariant=True, max_step_tokens=20, max_running=16)
    with pytest.raises(InputError, match="kv_format must be one of"):
        EngineSettings(kv_format="int3")  # type: ignore[arg-type]
