"""Published calls beyond the golden ones: signatures, system messages, threads, what is refused."""

from __future__ import annotations

from pathlib import Path
from threading import Thread

import pytest
import torch
from torch import Tensor

from internvl.compat import AutoModel, AutoTokenizer, InternVLChatModel, Tokenizer
from internvl.errors import ImageError, InputError, PromptError, TokenizerError

SHORT = {"max_new_tokens": 6, "do_sample": False}


def alone(model: InternVLChatModel, tiles: Tensor | None, question: str, **options) -> str:
    return model.chat(None, tiles, question, SHORT, **options)


def test_text_only_batches(model, tokenizer) -> None:
    questions = ["Hello, who are you?", "And?"]
    expected = [alone(model, None, question) for question in questions]
    assert model.batch_chat(tokenizer, None, questions, SHORT) == expected
    assert model.batch_chat(tokenizer, None, questions, SHORT, num_patches_list=[0, 0]) == expected


def test_no_to_two_pictures_a_sample(model, tokenizer, tiles) -> None:
    questions = ["no picture", "one picture", "<image> and <image>"]
    found = model.batch_chat(tokenizer, tiles, questions, SHORT, num_patches_list=[[], [2], [1, 2]])
    assert found == [
        alone(model, None, questions[0]),
        alone(model, tiles[:2], questions[1]),
        alone(model, tiles[2:], questions[2], num_patches_list=[1, 2]),
    ]
    assert found == model.batch_chat(tokenizer, tiles, questions, SHORT, [0, 2, [1, 2]])


def test_batches_with_history(model, tokenizer, tiles) -> None:
    first = ["what?", "who are you?"]
    answers, histories = model.batch_chat(
        tokenizer, tiles[:3], first, SHORT, num_patches_list=[3, 0], return_history=True
    )
    assert [history[-1][1] for history in histories] == answers
    second = ["and?", "really?"]
    found = model.batch_chat(tokenizer, tiles[:3], second, SHORT, num_patches_list=[3, 0], history=histories)
    assert found == [
        alone(model, tiles[:3], second[0], history=histories[0]),
        alone(model, None, second[1], history=histories[1]),
    ]


def test_multi_image_chat_of_2024_05(model, tokenizer, tiles) -> None:
    answer, history = model.multi_image_chat(tokenizer, tiles, [2, 3], "compare", SHORT, return_history=True)
    assert history == [("<image 1> (图1):<image><image 2> (图2):<image>\ncompare", answer)]
    again = model.multi_image_chat(tokenizer, tiles, [2, 3], "and?", SHORT, history=history)
    assert again == alone(model, tiles, "and?", history=history, num_patches_list=[2, 3])


def test_system_message_belongs_to_the_object(folder: Path) -> None:
    first, second = (AutoModel.from_pretrained(folder) for _ in range(2))
    before = alone(first, None, "Hello, who are you?")
    first.system_message = "You are a pirate."
    assert first.conv_template.system_message == "You are a pirate."
    assert second.system_message == second.conv_template.system_message != first.system_message
    expected = first.chat_model.chat("Hello, who are you?", system="You are a pirate.", max_new_tokens=6)
    assert alone(first, None, "Hello, who are you?") == expected.text
    assert alone(second, None, "Hello, who are you?") == before


def test_several_threads(model, tiles) -> None:
    questions = [f"question {number}" for number in range(4)]
    expected = [alone(model, tiles[:1], question) for question in questions]
    found: dict[str, str] = {}

    def ask(question: str) -> None:
        found[question] = alone(model, tiles[:1], question)

    threads = [Thread(target=ask, args=(question,)) for question in questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[question] for question in questions] == expected


def test_settings_are_not_changed(model) -> None:
    settings = {"max_new_tokens": 3, "do_sample": False, "temperature": 0.7}
    model.chat(None, None, "hi", settings)
    assert settings == {"max_new_tokens": 3, "do_sample": False, "temperature": 0.7}


def test_the_templates_end_wins_over_the_callers(model) -> None:
    assert model.chat(None, None, "hi", {**SHORT, "eos_token_id": 1}) == alone(model, None, "hi")


def test_sampling_with_a_seed(model) -> None:
    settings = {"max_new_tokens": 8, "do_sample": True, "temperature": 5.0, "seed": 3}
    assert model.chat(None, None, "hi", settings) == model.chat(None, None, "hi", settings)
    assert model.chat(None, None, "hi", settings) != model.chat(None, None, "hi", {**settings, "seed": 4})


def test_verbose_is_logged(model, caplog) -> None:
    with caplog.at_level("INFO", logger="internvl"):
        answer = alone(model, None, "hi", verbose=True)
    assert caplog.messages == [f"hi\n{answer}"]


@pytest.mark.parametrize(
    ("question", "shape", "options", "error", "message"),
    [
        ("<image> <image>", (2, 3, 84, 84), {"num_patches_list": [2]}, PromptError, "2 <image> marks"),
        ("what?", (2, 3, 84, 84), {"num_patches_list": [1, 1]}, PromptError, "2 pictures"),
        ("what?", (2, 3, 84, 84), {"num_patches_list": [1]}, PromptError, "has 2 tiles"),
        ("what?", (3, 84, 84), {}, ImageError, "must be a tensor"),
        ("what?", (1, 3, 70, 70), {}, ImageError, "84"),
        ("what?", (1, 3, 84, 84), {"IMG_START_TOKEN": "<pic>"}, InputError, "fixed by the checkpoint"),
        ("", None, {}, PromptError, "empty"),
    ],
)
def test_what_is_refused(model, question, shape, options, error, message) -> None:
    tiles = None if shape is None else torch.zeros(shape)
    with pytest.raises(error, match=message):
        model.chat(None, tiles, question, SHORT, **options)


def test_a_tokenizer_of_another_model(model, golden_dir: Path) -> None:
    other = AutoTokenizer.from_pretrained(golden_dir / "internvl1_5_internlm2")
    with pytest.raises(TokenizerError, match="load both from one place"):
        model.chat(other, None, "hi", SHORT)


def test_no_streamer_for_batches(model) -> None:
    with pytest.raises(InputError, match="one answer"):
        model.batch_chat(None, None, ["a", "b"], {"streamer": object()})
    with pytest.raises(InputError, match="streaming from ids"):
        model.generate(input_ids=torch.ones(1, 2, dtype=torch.long), streamer=object())


def test_generate_from_text(model, tokenizer: Tokenizer) -> None:
    texts = ["Hello, who are you?", "a"]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    both = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5)
    assert both.shape == (2, 5)
    for text, row in zip(texts, both, strict=True):
        single = tokenizer(text, return_tensors="pt")
        assert model.generate(**single, max_new_tokens=5, min_new_tokens=5)[0].tolist() == row.tolist()


def test_generate_pads_with_the_named_id(model, tokenizer: Tokenizer) -> None:
    inputs = tokenizer(["Hello, who are you?", "a"], return_tensors="pt", padding=True)
    free = model.generate(**inputs, max_new_tokens=8, eos_token_id=0)
    end = int(free[0, 2])
    found = model.generate(**inputs, max_new_tokens=8, eos_token_id=[end], pad_token_id=7)
    stop = free[0].tolist().index(end) + 1
    assert found[0].tolist() == free[0, :stop].tolist() + [7] * (found.shape[1] - stop)


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (None, {}, "input_ids must be"),
        ([[]], {}, "at least one id"),
        ([[1, 9999]], {}, "outside the vocabulary of 532"),
        ([[1, 2]], {"attention_mask": torch.ones(1, 3)}, "attention_mask is"),
        ([[1, 2]], {"attention_mask": torch.zeros(1, 2)}, "empty"),
        ([[1, 525]], {"pixel_values": torch.zeros(1, 3, 84, 84)}, r"\[1\] <IMG_CONTEXT> slots"),
    ],
)
def test_ids_that_are_refused(model, ids, options, message) -> None:
    input_ids = None if ids is None else torch.tensor(ids, dtype=torch.long)
    with pytest.raises(PromptError, match=message):
        model.generate(input_ids=input_ids, max_new_tokens=2, **options)


def test_features_may_be_trained_on(model, tiles) -> None:
    head = torch.nn.Linear(72, 2)
    head(model.extract_feature(tiles[:1])).sum().backward()
    assert head.weight.grad is not None
    assert bool(head.weight.grad.abs().sum() > 0)


def test_saved_and_loaded(model, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    again = AutoModel.from_pretrained(tmp_path / "saved")
    assert alone(again, None, "Hello, who are you?") == alone(model, None, "Hello, who are you?")
