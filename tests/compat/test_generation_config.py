"""Published settings become ours; what is unknown or not supported is refused by name."""

from __future__ import annotations

import copy

import pytest
import transformers

from internvl.compat import GenerationConfig
from internvl.compat.generation_config import read_settings
from internvl.errors import InputError


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        (None, {}),
        ({"max_new_tokens": 8, "do_sample": False}, {"max_new_tokens": 8}),
        ({"do_sample": False, "temperature": 0.9, "top_p": 0.5, "top_k": 3}, {}),
        ({"temperature": 0.9}, {}),
        ({"do_sample": True}, {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}),
        (
            {"do_sample": True, "temperature": 0.2, "top_k": 0, "top_p": None},
            {"temperature": 0.2, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
        ),
        ({"num_beams": 3, "length_penalty": 2.0, "early_stopping": True}, None),
        ({"repetition_penalty": 1.1, "min_new_tokens": 2}, None),
        ({"stop_strings": "###", "use_cache": True}, {"stop": ("###",)}),
        ({"num_return_sequences": 1, "return_dict_in_generate": False, "no_repeat_ngram_size": 0}, {}),
    ],
)
def test_settings(given, expected) -> None:
    before = copy.deepcopy(given)
    assert dict(read_settings(given).sampling) == (given if expected is None else expected)
    assert given == before


def test_ids_and_streamer() -> None:
    streamer = object()
    found = read_settings({"eos_token_id": [5, 6], "pad_token_id": 0, "streamer": streamer})
    assert (found.end_ids, found.pad_id, found.streamer) == ((5, 6), 0, streamer)
    assert read_settings({"eos_token_id": 5}).end_ids == (5,)
    assert read_settings({}).end_ids is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_tokens": 3}, "unknown setting 'max_tokens'; there are .*do_sample, .*max_new_tokens"),
        ({"max_length": 30}, "max_length.*max_new_tokens"),
        ({"num_return_sequences": 2}, "num_return_sequences=2 is not supported; ask several times"),
        ({"output_scores": True}, "output_scores=True .*logprobs"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size=3 is not supported"),
        ({"do_sample": "yes"}, "do_sample must be true or false"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be a token id"),
        ({"eos_token_id": []}, "eos_token_id must be a token id"),
        ("greedy", "must be a dictionary"),
    ],
)
def test_what_is_refused(given, message) -> None:
    with pytest.raises(InputError, match=message):
        read_settings(given)


def test_objects_of_settings() -> None:
    ours = GenerationConfig(max_new_tokens=5, do_sample=False)
    theirs = transformers.GenerationConfig(max_new_tokens=5, do_sample=False)
    assert dict(read_settings(ours).sampling) == dict(read_settings(theirs).sampling) == {"max_new_tokens": 5}
    assert dict(read_settings(ours, max_new_tokens=7).sampling) == {"max_new_tokens": 7}
