"""Ids and beam scores against the golden fixtures and against transformers' own generation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from internvl.generation import scores
from internvl.generation.beam import search
from internvl.generation.generate import generate, stream
from internvl.generation.prompt import Prompt
from internvl.generation.sampling import Sampling
from internvl.models.attention import Packed
from internvl.models.decoder import Decoder
from tests.conftest import GoldenFixtures
from tests.generation.golden_calls import load_golden
from tests.parity.test_decoders import FAMILIES, fuse

CHECKPOINTS = ("internvl2_5_qwen2", "internvl1_5_internlm2")
SINGLE = (
    "single",
    "single_no_placeholder",
    "round1",
    "round2",
    "round3",
    "multi_image",
    "combined_image",
    "video_frames",
    "text",
    "text_round2",
    "single_beams",
    "text_beams",
    "single_beams_lenpen",
    "single_reppen",
    "single_min_new",
)


@pytest.mark.parametrize("call", SINGLE)
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_golden_ids(golden_dir: GoldenFixtures, checkpoint: str, call: str) -> None:
    golden = load_golden(golden_dir / checkpoint)
    answer = generate(golden.model.llm, golden.prompts(call))[0]
    assert list(answer.ids) == golden.calls[call]["new_token_ids"]
    is_stopped = answer.ids[-1] == golden.calls[call]["eos_token_id"]
    assert answer.finish_reason == ("stop" if is_stopped else "length")


@pytest.mark.parametrize("call", ["batch", "batch_beams"])
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_golden_batches(golden_dir: GoldenFixtures, checkpoint: str, call: str) -> None:
    golden = load_golden(golden_dir / checkpoint)
    expected, stop = golden.calls[call]["new_token_ids"], golden.calls[call]["eos_token_id"]
    pad = stop if golden.pad_id is None else golden.pad_id
    for answer, row in zip(generate(golden.model.llm, golden.prompts(call)), expected, strict=True):
        assert [*answer.ids, *[pad] * (len(row) - len(answer.ids))] == row


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_golden_beams_and_their_scores(golden_dir: GoldenFixtures, checkpoint: str) -> None:
    golden = load_golden(golden_dir / checkpoint)
    call = golden.calls["single_beams"]
    [prompt] = golden.prompts("single_beams")
    answers = search(golden.model.llm, prompt).best(len(call["all_beams"]))
    for answer, (_start, *ids) in zip(answers, call["all_beams"], strict=True):
        assert list(answer.ids) == ids[: len(answer.ids)]
        assert set(ids[len(answer.ids) :]) <= {golden.pad_id, call["eos_token_id"]}
    assert [answer.score for answer in answers] == pytest.approx(call["sequences_scores"], abs=1e-4)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_golden_scores_of_every_step(golden_dir: GoldenFixtures, checkpoint: str) -> None:
    golden = load_golden(golden_dir / checkpoint)
    [prompt] = golden.prompts("single")
    answer = generate(golden.model.llm, [prompt])[0]
    with torch.inference_mode():
        x_TD = torch.cat((prompt.x_TD, golden.model.llm.embed(torch.tensor(answer.ids[:-1]))))
        states = golden.model.llm(x_TD, torch.arange(len(x_TD)), Packed([len(x_TD)]))
        logits = golden.model.llm.logits(states[len(prompt.x_TD) - 1 :])
    torch.testing.assert_close(logits, golden.tensors["single.greedy_scores"], atol=1e-4, rtol=1e-4)


PAD = 3
GREEDY: dict[str, dict[str, Any]] = {
    "greedy": {},
    "repetition": {"repetition_penalty": 1.7},
    "min_new": {"min_new_tokens": 12},
}
BEAMS: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 3},
    "beams longer": {"num_beams": 4, "length_penalty": 2.0},
    "beams shorter": {"num_beams": 2, "length_penalty": -1.0},
    "beams early": {"num_beams": 3, "early_stopping": True},
    "beams repetition": {"num_beams": 3, "repetition_penalty": 1.4, "min_new_tokens": 5},
}


STOP_IDS = (2, 7, 11)


def both(family: str) -> tuple[Any, Decoder]:
    """A decoder of transformers with random weights, and ours with the same ones."""
    theirs_class, theirs_config, our_config = FAMILIES[family]
    theirs = theirs_class(theirs_config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = Decoder(our_config).eval()
    ours.load_state_dict(fuse(theirs.state_dict()))
    return theirs, ours


def their_answer(theirs: Any, ids_T: torch.Tensor, values: dict[str, Any]) -> Any:
    return theirs.generate(
        ids_T[None],
        attention_mask=torch.ones(1, len(ids_T), dtype=torch.long),
        do_sample=False,
        max_new_tokens=16,
        eos_token_id=list(STOP_IDS),
        pad_token_id=PAD,
        num_return_sequences=values.get("num_beams", 1),
        output_scores=True,
        return_dict_in_generate=True,
        **values,
    )


@torch.inference_mode()
def our_prompt(ours: Decoder, ids_T: torch.Tensor, values: dict[str, Any]) -> Prompt:
    sampling = Sampling(max_new_tokens=16, stop_ids=STOP_IDS, **values)
    return Prompt(ours.embed(ids_T), sampling, ids_T.tolist())


@pytest.mark.parametrize("length", [1, 9, 30])
@pytest.mark.parametrize("setting", GREEDY)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_greedy_of_transformers(family: str, setting: str, length: int) -> None:
    theirs, ours = both(family)
    ids_T = torch.randint(0, ours.config.vocab_size, (length,))
    [row] = their_answer(theirs, ids_T, GREEDY[setting]).sequences[:, length:].tolist()
    assert [token.id for token in stream(ours, [our_prompt(ours, ids_T, GREEDY[setting])])] == row


@pytest.mark.parametrize("length", [1, 9, 30])
@pytest.mark.parametrize("setting", BEAMS)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_beams_of_transformers(family: str, setting: str, length: int) -> None:
    theirs, ours = both(family)
    ids_T = torch.randint(0, ours.config.vocab_size, (length,))
    expected = their_answer(theirs, ids_T, BEAMS[setting])
    prompt = our_prompt(ours, ids_T, BEAMS[setting])
    answers = search(ours, prompt).best(prompt.sampling.num_beams)
    for answer, row in zip(answers, expected.sequences[:, length:].tolist(), strict=True):
        assert list(answer.ids) == row[: len(answer.ids)]
        assert set(row[len(answer.ids) :]) <= {PAD}
    assert [answer.score for answer in answers] == pytest.approx(expected.sequences_scores.tolist(), rel=1e-5)


def random_scores(kind: str) -> torch.Tensor:
    scores_V = torch.randn(3000) * {"peaked": 4.0, "flat": 0.05, "ties": 2.0}[kind]
    return scores_V.round() if kind == "ties" else scores_V


@pytest.mark.parametrize("kind", ["peaked", "flat", "ties"])
@pytest.mark.parametrize("top_k", [1, 7, 2999, 5000])
def test_top_k_of_transformers(kind: str, top_k: int) -> None:
    scores_V = random_scores(kind)
    assert scores.keep_top_k(scores_V, top_k).equal(TopKLogitsWarper(top_k)(None, scores_V[None])[0])


@pytest.mark.parametrize("kind", ["peaked", "flat", "ties"])
@pytest.mark.parametrize("top_p", [1e-4, 0.3, 0.9, 0.999])
def test_top_p_of_transformers(kind: str, top_p: float) -> None:
    for _ in range(5):
        scores_V = random_scores(kind)
        assert scores.keep_top_p(scores_V, top_p).equal(TopPLogitsWarper(top_p)(None, scores_V[None])[0])


@pytest.mark.parametrize("kind", ["peaked", "flat", "ties"])
@pytest.mark.parametrize("min_p", [1e-3, 0.1, 0.9, 1.0])
def test_min_p_of_transformers(kind: str, min_p: float) -> None:
    scores_V = random_scores(kind)
    assert scores.keep_min_p(scores_V, min_p).equal(MinPLogitsWarper(min_p)(None, scores_V[None])[0])


@pytest.mark.parametrize("top_k", [5, 200])
def test_filters_in_a_row(top_k: int) -> None:
    scores_V = random_scores("peaked")
    sampling = Sampling(temperature=0.7, top_k=top_k, top_p=0.8, min_p=0.02)
    expected = (scores_V / 0.7)[None]
    for warper in (TopKLogitsWarper(top_k), TopPLogitsWarper(0.8), MinPLogitsWarper(0.02)):
        expected = warper(None, expected)
    assert scores.warp(scores_V, sampling).equal(expected[0])
    assert 1 < int((expected > -math.inf).sum()) < top_k


@pytest.mark.parametrize("penalty", [0.5, 1.3])
def test_repetition_penalty_of_transformers(penalty: float) -> None:
    scores_V, ids = random_scores("peaked"), [5, 2999, 5, 17, 0]
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([ids]), scores_V[None])[0]
    assert scores.penalise_repetition(scores_V, ids, penalty).equal(expected)
