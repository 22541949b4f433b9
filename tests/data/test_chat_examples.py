"""Rows as prefix, branches and tiles."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from internvl.config import ChatConfig, ProjectorConfig, TextConfig, TilingConfig, VisionConfig
from internvl.data.batch import pack
from internvl.data.caption_questions import CAPTION_QUESTIONS
from internvl.data.chat_examples import Examples
from internvl.data.example import Example
from internvl.data.meta import DataSet
from internvl.errors import ImageError, InputError, VideoError
from internvl.processing.conversation import Conversation, Message, Picture, Role
from internvl.processing.processor import Processor
from internvl.processing.tiling import TileChoice
from internvl.processing.tokenizer import load_tokenizer
from tests.data.rows import numbered
from tests.processing import tiny_tokenizers
from tests.processing.test_video import make_video

SIZE = 28  # one vision token a tile
HUMAN, GPT = {"from": "human", "value": "Please describe the image."}, {"from": "gpt", "value": "A panda."}


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    text = TextConfig(
        vocab_size=600, width=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, mlp_width=8
    )
    config = ChatConfig(
        vision=VisionConfig(image_size=SIZE),
        projector=ProjectorConfig(),
        text=text,
        tiling=TilingConfig(tile_size=SIZE, max_tiles=4),
        template="internvl2_5",
    )
    return Processor(config, load_tokenizer(tiny_tokenizers.qwen2(tmp_path_factory.mktemp("tokenizer"))))


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    """Pictures a.png (2 x 1 tiles and a thumbnail) and b.png (one tile), and v.mp4."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[:20, :20]).save(tmp_path / "b.png")
    (tmp_path / "v.mp4").write_bytes(make_video())
    return numbered(tmp_path, "set", 1)


@pytest.fixture
def examples(processor: Processor) -> Examples:
    return Examples(processor, max_length=2048)


def texts(processor: Processor, example: Example) -> tuple[str, list[tuple[str, str]]]:
    """The prefix as text, and of every branch its text and what is learnt of it."""
    decode = lambda ids: processor.tokenizer.decode(ids, skip_special=False)  # noqa: E731
    rows = []
    for branch in example.branches:
        learnt = [id for id, trained in zip(branch.ids, branch.trained, strict=True) if trained]
        rows.append((decode(branch.ids), decode(learnt)))
    return decode(example.prefix), rows


def check_measure(examples: Examples, row: Mapping[str, Any], data: DataSet, seed: int) -> Example:
    """The example, after its size was found the same without decoding."""
    example = examples.example(row, data, seed=seed)
    size = examples.measure(row, data, seed=seed)
    assert size == example.size
    return example


def test_one_picture(processor: Processor, examples: Examples, data: DataSet) -> None:
    example = check_measure(examples, {"id": 5, "image": "a.png", "conversations": [HUMAN, GPT]}, data, 0)
    prefix, rows = texts(processor, example)
    assert example.key == data.name
    assert prefix.endswith(
        "<|im_start|>user\n<img><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT></img>\nPlease describe the image."
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert rows == [("A panda.<|im_end|>\n", "A panda.<|im_end|>")]
    assert example.size.tiles == len(example.slots) == 3
    context = processor.tokenizer.token_id("<IMG_CONTEXT>")
    assert [example.prefix[slot] for slot in example.slots] == [context] * 3
    assert len(example.image_keys) == 1


def test_text_has_no_tiles(examples: Examples, data: DataSet) -> None:
    example = check_measure(examples, {"conversations": [HUMAN, GPT]}, data, 0)
    assert example.tiles_N3HW is None
    assert (example.slots, example.image_keys, example.size.tiles) == ((), (), 0)


def test_pictures_after_the_first_answer_are_in_the_branch(examples: Examples, data: DataSet) -> None:
    later = {"from": "human", "value": "And <image>?"}
    row = {
        "image": ["b.png", "a.png"],
        "conversations": [{"from": "human", "value": "<image>"}, GPT, later, GPT],
    }
    example = check_measure(examples, row, data, 0)
    assert len(example.branches) == 1
    assert example.slots[0] < len(example.prefix) < example.slots[1]
    whole = [*example.prefix, *example.branches[0].ids]
    assert len({whole[slot] for slot in example.slots}) == 1
    batch = pack([example], SIZE)
    assert {int(batch.ids_T[slot]) for slot in batch.slots_S} == {whole[example.slots[0]]}


def test_pictures_share_the_tile_limit(processor: Processor, data: DataSet) -> None:
    row = {"image": ["a.png", "a.png"], "question": "<image><image>?", "answer": "No."}
    examples = Examples(processor, max_length=2048)
    assert check_measure(examples, row, replace(data, max_tiles=2), 0).size.tiles == 2
    assert check_measure(examples, row, replace(data, max_tiles=4), 0).size.tiles == 6
    assert check_measure(examples, row, data, 0).size.tiles == 6


def test_answers_to_one_picture_are_branches(processor: Processor, examples: Examples, data: DataSet) -> None:
    row = {"image": "a.png", "question": "What?", "answers": ["A dog.", "A dog runs.", "Snow."]}
    example = check_measure(examples, row, data, 0)
    prefix, rows = texts(processor, example)
    assert prefix.endswith("What?<|im_end|>\n<|im_start|>assistant\n")
    assert [learnt for _, learnt in rows] == ["A dog.<|im_end|>", "A dog runs.<|im_end|>", "Snow.<|im_end|>"]
    assert example.size.tiles == 3
    for answer, branch in zip(row["answers"], example.branches, strict=True):
        alone = examples.example({**row, "answers": [answer]}, data, seed=0)
        assert alone.prefix + alone.branches[0].ids == example.prefix + branch.ids


def test_pairs_share_the_picture_and_nothing_of_the_questions_is_learnt(
    processor: Processor, examples: Examples, data: DataSet
) -> None:
    row = {"image": "a.png", "pairs": [["Who?", "A dog."], ["Where is it?", "In the snow."]]}
    example = check_measure(examples, row, data, 0)
    prefix, rows = texts(processor, example)
    assert "</img>" in prefix
    assert "Who" not in prefix
    assert [learnt for _, learnt in rows] == ["A dog.<|im_end|>", "In the snow.<|im_end|>"]
    for pair, branch in zip(row["pairs"], example.branches, strict=True):
        alone = examples.example({"image": "a.png", "pairs": [pair]}, data, seed=0)
        assert alone.prefix + alone.branches[0].ids == example.prefix + branch.ids


def test_without_sharing_one_answer_is_drawn(processor: Processor, data: DataSet) -> None:
    examples = Examples(processor, max_length=2048, share_pictures=False)
    row = {"image": "a.png", "pairs": [["Who?", "A dog."], ["Where is it?", "In the snow."]]}
    found = set()
    for seed in range(20):
        example = check_measure(examples, row, data, seed)
        assert len(example.branches) == 1
        found.add(texts(processor, example)[1][0][1])
    assert found == {"A dog.<|im_end|>", "In the snow.<|im_end|>"}


def test_questions_before_the_picture_cannot_share_it(processor: Processor, data: DataSet) -> None:
    row = {"image": "a.png", "pairs": [["Who is <image>", "A dog."], ["Where <image>", "Snow."]]}
    with pytest.raises(InputError, match="cannot share it"):
        Examples(processor, max_length=2048).measure(row, data)
    assert Examples(processor, max_length=2048, share_pictures=False).measure(row, data).tiles == 3


def test_preference_has_two_branches_with_their_references(processor: Processor, data: DataSet) -> None:
    row = {
        "image": "a.png",
        "question": "Who?",
        "chosen": "A dog.",
        "rejected": "A cat.",
        "ref_chosen_logps": -1.0,
        "ref_rejected_logps": -2.5,
    }
    for share in (True, False):
        example = check_measure(Examples(processor, max_length=2048, share_pictures=share), row, data, 0)
        assert [branch.reference for branch in example.branches] == [-1.0, -2.5]
        _, rows = texts(processor, example)
        assert [learnt for _, learnt in rows] == ["A dog.<|im_end|>", "A cat.<|im_end|>"]
        assert example.size.tiles == 3


def test_an_objective_takes_preferences_or_all_else(processor: Processor, data: DataSet) -> None:
    preference = {"image": "a.png", "question": "Who?", "chosen": "A dog.", "rejected": "A cat."}
    others: list[dict[str, Any]] = [
        {"image": "a.png", "question": "Who?", "answers": ["A dog.", "A cat."]},
        {"question": "Who?", "answer": "A dog."},
        {"conversations": [HUMAN, GPT]},
        {"text": "A dog."},
    ]
    for row in (preference, *others):
        example = Examples(processor, max_length=2048).example(row, data, seed=0)
        assert example.is_preference == (row is preference)
        fitting = Examples(processor, max_length=2048, preferences=example.is_preference)
        assert check_measure(fitting, row, data, 0).branches == example.branches
        refusing = Examples(processor, max_length=2048, preferences=not example.is_preference)
        message = "would learn the rejected answer too" if row is preference else "write question, chosen"
        for read in (refusing.measure, partial(refusing.example, seed=0), refusing.ask):
            with pytest.raises(InputError, match=message):
                read(row, data)


def test_the_seed_draws_questions_and_nothing_else_does(processor: Processor, data: DataSet) -> None:
    examples = Examples(processor, max_length=2048)
    row = {"image": "b.png", "en": ["A dog runs."]}
    asked = set()
    for seed in range(40):
        random.seed(seed)
        example = check_measure(examples, row, data, seed)
        again = examples.example(row, data, seed=seed)
        assert (example.prefix, example.branches) == (again.prefix, again.branches)
        asked.add(texts(processor, example)[0])
    assert len(asked) == len(CAPTION_QUESTIONS["en"])


def test_text_is_learnt_whole_but_for_pictures(
    processor: Processor, examples: Examples, data: DataSet
) -> None:
    prefix, ((text, learnt),) = texts(processor, check_measure(examples, {"text": "A red panda."}, data, 0))
    assert prefix + text == "A red panda."
    assert learnt == text  # the first token has nothing that predicts it
    turn = {"from": "pretrain", "value": "See <image> here"}
    example = check_measure(examples, {"image": "a.png", "conversations": [turn]}, data, 0)
    prefix, ((text, learnt),) = texts(processor, example)
    assert prefix + text == "See <img><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT></img> here"
    assert learnt.endswith(" here")
    assert "<" not in learnt
    assert example.size.tiles == 3


def test_tokens_of_the_template_in_data_are_text(
    processor: Processor, examples: Examples, data: DataSet
) -> None:
    row = {"question": "Say <|im_end|> and <IMG_CONTEXT>", "answer": "<|im_end|>"}
    example = examples.example(row, data, seed=0)
    end = processor.tokenizer.token_id("<|im_end|>")
    learnt = [
        id
        for id, trained in zip(example.branches[0].ids, example.branches[0].trained, strict=True)
        if trained
    ]
    assert learnt.count(end) == 1
    assert learnt[-1] == end
    assert example.slots == ()


def test_video(processor: Processor, examples: Examples, data: DataSet) -> None:
    row = {"video": "v.mp4", "clip": [0, 3], "question": "<video>\nWhat?", "answer": "Light."}
    example = check_measure(examples, row, data, 1)
    prefix, _ = texts(processor, example)
    assert "user\nFrame-1: <img><IMG_CONTEXT></img>\nFrame-2: <img>" in prefix
    assert "</img>\nWhat?<|im_end|>" in prefix
    assert 8 <= example.size.tiles <= 32
    assert prefix.count("Frame-") == example.size.tiles == len(example.image_keys)
    assert len({check_measure(examples, row, data, seed).image_keys for seed in range(5)}) > 1


def test_messages(processor: Processor, examples: Examples, data: DataSet) -> None:
    content = [
        {"type": "image", "image": "a.png", "max_tiles": 1},
        {"type": "video", "video": "v.mp4", "num_segments": 3},
        {"type": "text", "text": "What?"},
    ]
    row = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "Both."}]}
    example = check_measure(examples, row, data, 0)
    prefix, rows = texts(processor, example)
    assert example.size.tiles == 4
    assert "<img><IMG_CONTEXT></img>\nFrame-1: <img>" in prefix
    assert rows[0][1] == "Both.<|im_end|>"


def test_augmentation_follows_the_seed(examples: Examples, data: DataSet) -> None:
    row = {"image": "a.png", "conversations": [HUMAN, GPT]}
    plain = examples.example(row, data, seed=0)
    augmented = replace(data, augment=True)
    first, again, other = (examples.example(row, augmented, seed=seed) for seed in (0, 0, 1))
    assert first.tiles_N3HW is not None
    assert again.tiles_N3HW is not None
    assert other.tiles_N3HW is not None
    assert torch.equal(first.tiles_N3HW, again.tiles_N3HW)
    assert first.image_keys == again.image_keys
    assert len({plain.image_keys, first.image_keys, other.image_keys}) == 3
    assert not torch.equal(first.tiles_N3HW, other.tiles_N3HW)


def test_bytes_and_arrays_in_rows(examples: Examples, data: DataSet) -> None:
    content = (data.root / "a.png").read_bytes()
    row = {"question": "What?", "answer": "A dog."}
    sources = (content, {"bytes": content, "path": None}, Image.open(data.root / "a.png"), "a.png")
    keys = {check_measure(examples, {**row, "image": source}, data, 0).image_keys for source in sources}
    assert len(keys) == 1


def test_white_space_is_stripped_where_the_template_says_so(processor: Processor, data: DataSet) -> None:
    stripping = Processor(replace(processor.config, template="internlm2-chat"), processor.tokenizer)
    row = {"image": "b.png", "question": "  What? \n", "answer": "\n A dog.  "}
    prefix, rows = texts(stripping, Examples(stripping, max_length=2048).example(row, data, seed=0))
    assert "</img>\n  What?<|im_end|>" in prefix  # its text begins with the mark that was put there
    assert rows[0][1] == "A dog.<|im_end|>"
    prefix, rows = texts(processor, Examples(processor, max_length=2048).example(row, data, seed=0))
    assert rows[0][1].endswith("A dog.  <|im_end|>")
    with pytest.raises(InputError, match="turn 1 \\(assistant\\) is empty"):
        Examples(stripping, max_length=2048).measure({**row, "answer": "  \n"}, data)


def test_bad_samples_of_every_kind(processor: Processor, examples: Examples, data: DataSet) -> None:
    turns = {"conversations": [HUMAN, GPT]}
    (data.root / "text.png").write_text("no picture")
    (data.root / "empty.png").write_bytes(b"")
    whole = (data.root / "a.png").read_bytes()
    (data.root / "cut.png").write_bytes(whole[: len(whole) // 2])
    (data.root / "cut.mp4").write_bytes((data.root / "v.mp4").read_bytes()[:300])
    cases: list[tuple[Mapping[str, Any], type[InputError], str]] = [
        ({**turns, "image": "gone.png"}, ImageError, "no such file"),
        ({**turns, "image": "text.png"}, ImageError, "no picture"),
        ({**turns, "image": "empty.png"}, ImageError, "empty|no picture"),
        ({**turns, "image": "cut.png"}, ImageError, "cut off or damaged"),
        ({**turns, "image": "."}, ImageError, "directory"),
        ({**turns, "image": "a\0.png"}, ImageError, "no such file"),
        ({**turns, "image": "http://example.com/a.png"}, ImageError, "closed"),
        ({**turns, "video": "gone.mp4"}, VideoError, "no such file"),
        ({**turns, "video": "cut.mp4"}, VideoError, "cut off"),
        ({**turns, "video": "v.mp4", "clip": [90, 99]}, VideoError, "bound"),
        ({**turns, "video": "v.mp4", "clip": "x"}, VideoError, "bound"),
        ({"conversations": [HUMAN]}, InputError, "no token is trained on"),
        ({"conversations": [HUMAN, {"from": "gpt", "value": ""}]}, InputError, "turn 1 .* is empty"),
        ({"conversations": [{"from": "human", "value": ""}, GPT]}, InputError, "turn 0 .* is empty"),
        ({"question": "word " * 3000, "answer": "No."}, InputError, "the limit is 2048"),
        ({"text": "A"}, InputError, "no token is trained on"),
    ]
    for row, kind, message in cases:
        with pytest.raises(kind, match=message):
            examples.example(row, data, seed=0)


def test_white_space_that_the_marks_of_a_template_eat_takes_no_room(
    processor: Processor, data: DataSet, tmp_path: Path
) -> None:
    folder = tiny_tokenizers.qwen2(tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    for token in settings["added_tokens_decoder"].values():
        token["lstrip"] = token["content"] == "<|im_end|>"
    tiny_tokenizers.write_json(folder, "tokenizer_config.json", settings)
    row = {"question": f"Why?{' ' * 9000}", "answer": "No."}
    eating = Processor(processor.config, load_tokenizer(folder))
    assert Examples(eating, max_length=200).measure(row, data).tokens < 200
    with pytest.raises(InputError, match="limit is 200"):
        Examples(processor, max_length=200).measure(row, data)


def test_many_tiles_are_too_long_before_text_is_read(processor: Processor, data: DataSet) -> None:
    row = {"image": ["a.png"] * 5, "question": "<image>" * 5, "answer": "No."}
    with pytest.raises(InputError, match=r"limit is 4 \(max_length\).*allow fewer tiles"):
        Examples(processor, max_length=4).measure(row, data)


def test_the_limit_itself_is_allowed(processor: Processor, data: DataSet) -> None:
    row = {"image": "a.png", "conversations": [HUMAN, GPT]}
    length = Examples(processor, max_length=2048).measure(row, data).tokens
    assert Examples(processor, max_length=length).measure(row, data).tokens == length
    with pytest.raises(InputError, match=f"^{length} tokens .3 tiles of 1 pictures.* {length - 1} "):
        Examples(processor, max_length=length - 1).measure(row, data)


@pytest.mark.parametrize("template", ["internvl2_5", "internvl_zh", "plain"])
def test_ids_are_those_of_the_processor(processor: Processor, data: DataSet, template: str) -> None:
    """Pictures are read as one tile and widened; the processor of chat reads all their vision tokens."""
    config = replace(
        processor.config,
        template=template,
        vision=VisionConfig(image_size=56),
        tiling=TilingConfig(tile_size=56, max_tiles=4),
    )
    chat = Processor(config, processor.tokenizer)
    row = {
        "image": ["a.png", "b.png", "a.png"],
        "conversations": [
            {"from": "human", "value": "<image>one<image>"},
            GPT,
            {"from": "human", "value": "Now <image>?"},
            GPT,
        ],
    }
    example = check_measure(Examples(chat, max_length=2048), row, data, 0)
    pictures = [Picture(data.root / name, TileChoice(max_tiles=1)) for name in row["image"]]
    messages = (
        Message(Role.USER, (pictures[0], "one", pictures[1])),
        Message(Role.ASSISTANT, ("A panda.",)),
        Message(Role.USER, ("Now ", pictures[2], "?")),
        Message(Role.ASSISTANT, ("A panda.",)),
    )
    inputs = chat(Conversation(messages), open_answer=False)
    assert inputs.tile_counts == (1, 1, 1)
    wide = Examples(chat, max_length=2048).example(row, replace(data, max_tiles=12), seed=0)
    counts = (3, 1, 3)
    tokens = chat.tokenize(Conversation(messages), counts, open_answer=False)
    for found, expected in ((example, inputs), (wide, tokens)):
        ids = (*found.prefix, *found.branches[0].ids)
        marks = (*[False] * len(found.prefix), *found.branches[0].trained)
        assert list(ids) == expected.ids
        assert list(marks) == expected.are_answers
        assert list(found.slots) == expected.slots


JUNK = (
    *(
        0,
        -1,
        10**400,
        1.5,
        float("nan"),
        True,
        "",
        "x",
        "\0",
        "\ud800",
        "<image>",
        "<video>",
        b"",
        b"x",
        "a.png",
    ),
    *([], [None], [[]], ["a.png", 3], {}, {"bytes": 3}, {"path": "a.png"}, [{"from": "human"}], [0, 10**400]),
    *([{"role": "user", "content": [{"type": "image", "image": "a.png"}]}], [["Q", "A"]], [["<image>", "A"]]),
)
KEYS = (
    *("conversations", "messages", "image", "images", "video", "clip", "question", "answer", "answers", "en"),
    *("captions", "pairs", "text", "chosen", "rejected", "ref_chosen_logps", "system", "id"),
)


@given(st.dictionaries(st.sampled_from(KEYS), st.sampled_from(JUNK), max_size=5))
@settings(max_examples=300)
def test_junk_is_measured_or_refused(hostile: tuple[Examples, DataSet], row: dict[str, Any]) -> None:
    examples, data = hostile
    start = {"video": "v.mp4"} if "clip" in row else {}
    try:
        size = examples.measure({**start, **row}, data, seed=1)
    except InputError:
        return
    assert 0 < size.trained < size.tokens


@pytest.fixture(scope="module")
def hostile(processor: Processor, tmp_path_factory: pytest.TempPathFactory) -> tuple[Examples, DataSet]:
    root = tmp_path_factory.mktemp("hostile")
    Image.new("RGB", (60, 30)).save(root / "a.png")
    (root / "v.mp4").write_bytes(make_video())
    return Examples(processor, max_length=512), numbered(root, "set", 1)


@pytest.mark.parametrize("options", [{"fps": 10**400}, {"bound": [0, 10**400]}, {"num_segments": 10**400}])
def test_numbers_beyond_floats_in_messages(
    hostile: tuple[Examples, DataSet], options: dict[str, Any]
) -> None:
    content = [{"type": "video", "video": "v.mp4", **options}]
    row = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A."}]}
    with pytest.raises(VideoError):
        hostile[0].measure(row, hostile[1])


def test_a_text_that_is_far_too_long_is_not_tokenised(
    examples: Examples, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Processor, "tokenize", lambda *_, **__: pytest.fail("tokenised"))
    longest = max(len(examples.processor.tokenizer.token(id) or "") for id in range(500))
    row = {"question": "What is it?", "answer": "panda" * 2048 * longest}
    with pytest.raises(InputError, match=r"tokens .* the limit is 2048 \(max_length\)"):
        examples.measure(row, data)
