from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl.config import GROUNDING_TOKENS
from internvl.errors import TokenizerError
from internvl.processing.tokenizer import Tokenizer, load_tokenizer
from tests.processing import tiny_tokenizers as tiny

WRITERS: dict[str, Callable[[Path], Path]] = {
    "llama_legacy": lambda path: tiny.llama(path, added=tuple(map(tiny.row, tiny.IMAGE_TOKENS))),
    "llama_newer": lambda path: tiny.llama(path, legacy=False, added=tuple(map(tiny.row, tiny.IMAGE_TOKENS))),
    "internlm2": tiny.internlm2,
    "qwen2": tiny.qwen2,
    "fast": tiny.fast,
}


@pytest.fixture(scope="module", params=WRITERS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(WRITERS[request.param](tmp_path_factory.mktemp(request.param)))


TEXTS = (
    "Hello, who are you?",
    "你好，<img><IMG_CONTEXT></img>\n请描述 🐼",
    "  two  spaces\tand\ttabs\n\n",
    "<ref>the red panda</ref><box>[[1, 2, 3, 4]]</box>",
    "é ﬁ ½ ▁",
)


@pytest.mark.parametrize("text", TEXTS)
def test_offsets_tell_where_tokens_come_from(tokenizer: Tokenizer, text: str) -> None:
    encoding = tokenizer.encode(text)
    covered = [character for span in encoding.offsets for character in range(*span)]
    assert set(covered) == set(range(len(text)))
    assert encoding.offsets == sorted(encoding.offsets)
    for id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        if tokenizer.token(id) in tiny.IMAGE_TOKENS:
            assert text[start:end] == tokenizer.token(id)


@pytest.mark.parametrize(
    "text", [*TEXTS, "", " " * 90, "the red panda " * 9, "\x04\u1f82α\u0313\u0300\u0345" * 9]
)
def test_the_least_number_of_tokens_is_no_more_than_there_are(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.least(text) <= len(tokenizer.encode(text, bos=False, eos=False).ids)
    assert tokenizer.least(text) <= len(tokenizer.encode(text, plain=[(0, len(text))]).ids)


@given(st.text(st.sampled_from(" \n\tae\u0301\u0323각\x04🐼▁"), max_size=60))
def test_the_least_number_of_any_text(tokenizer: Tokenizer, text: str) -> None:
    for repeated in (text, text * 9):
        assert tokenizer.least(repeated) <= len(tokenizer.encode(repeated, bos=False).ids)


def test_the_least_number_grows_with_the_text(tokenizer: Tokenizer) -> None:
    least = tokenizer.least("panda, " * 1000)
    assert 1000 * 6 / 80 <= least <= 1000 * 6
    assert tokenizer.least("panda, " * 3000) >= 3 * least - 3


@pytest.mark.parametrize("space", [" ", "\n", " \t"])
def test_white_space_counts(tokenizer: Tokenizer, space: str) -> None:
    assert tokenizer.least(space * 9000) >= 9000 * len(space) / 20


LONGEST = "<longer than any piece>"


def eating(path: Path) -> Path:
    """As Phi-3: white space beside these names is in no token."""
    added = (tiny.row("<|user|>", rstrip=True), tiny.row("<box>", lstrip=True))
    return tiny.llama(path, legacy=False, added=(*added, tiny.row("</box>", lstrip=True, rstrip=True)))


def dropping(path: Path) -> Path:
    """Words without the white space between them."""
    steps = [
        {"type": "WhitespaceSplit"},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
    ]
    steps[1]["trim_offsets"] = False
    return tiny.fast(path, pre_tokenizer={"type": "Sequence", "pretokenizers": steps})


def joining(path: Path) -> Path:
    """As SentencePiece does unless told otherwise: one space of many, none at the edges."""
    tiny.llama(path, added=(tiny.row("<box>"), tiny.row("</box>"), tiny.row(LONGEST)))
    (path / "tokenizer.model").write_bytes(tiny.pieces(remove_extra_whitespaces=True))
    return path


@pytest.fixture(scope="module", params=[eating, dropping, joining])
def swallowing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(request.param(tmp_path_factory.mktemp(request.param.__name__)))


WORDS = (" ", "\n", "\u3000", "a", "<box>", "</box>", "<|user|>", "x>", LONGEST)


@given(st.lists(st.sampled_from(WORDS), max_size=40))
def test_white_space_that_is_swallowed_does_not_count(swallowing: Tokenizer, words: list[str]) -> None:
    text = "".join(words)
    for repeated in (text, text * 9, text.replace(" ", " " * 50)):
        for plain in ((), [(0, len(repeated) // 2)], [(0, len(repeated))]):
            ids = swallowing.encode(repeated, plain=plain, bos=False).ids
            assert swallowing.least(repeated) <= len(ids)


def test_the_space_that_the_tokenizer_itself_puts_does_not_count(tmp_path: Path) -> None:
    one = load_tokenizer(tiny.llama(tmp_path, added=(tiny.row(LONGEST),)))
    assert one.least(LONGEST * 3) == len(one.encode(LONGEST * 3, bos=False).ids) == 3


def test_white_space_counts_where_no_token_eats_it(tmp_path: Path) -> None:
    eats = load_tokenizer(eating(tmp_path))
    assert eats.least(f"<|user|>{' ' * 9000}") == 1
    assert eats.least(f"<|user|>a{' ' * 9000}") > 500


def test_letters_count_once_where_only_others_are_joined(tmp_path: Path) -> None:
    qwen2 = load_tokenizer(tiny.qwen2(tmp_path))
    assert qwen2.least("a" * 1300) == 4 * qwen2.least("\u0301" * 1300) == 100


def test_nothing_is_said_of_vocabularies_with_unknown_characters(tmp_path: Path) -> None:
    """Any number of them may be one token, or none."""
    path = tiny.fast(tmp_path)
    description = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    for part in (
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "CharDelimiterSplit", "delimiter": "a"}},
        {"decoder": None},
    ):
        (path / "tokenizer.json").write_text(json.dumps(description | part), encoding="utf-8")
        assert load_tokenizer(path).least("panda" * 1000) == 0


@pytest.mark.parametrize("text", TEXTS[:3])
def test_decoding_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    # A legacy LLaMA tokenizer strips the first space it finds, its own prefix or not.
    words = text.strip().replace("<img><IMG_CONTEXT></img>", "")
    assert tokenizer.decode(tokenizer.encode(words).ids) == words


def test_size_covers_every_id(tokenizer: Tokenizer) -> None:
    assert tokenizer.token(tokenizer.size - 1) == "</box>"
    assert tokenizer.token(tokenizer.size) is None
    assert max(id for id in range(1000) if tokenizer.token(id) is not None) == tokenizer.size - 1


def test_special_tokens_are_skipped_and_kept(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<img><ref>the dog</ref><box>[[1, 2]]</box></img>", bos=False).ids
    assert tokenizer.decode(ids).replace(" ", "") == "thedog[[1,2]]"
    assert tokenizer.decode(ids, keep=GROUNDING_TOKENS) == "<ref>the dog</ref><box>[[1, 2]]</box>"
    assert tokenizer.decode(ids, skip_special=False).replace(" ", "") == (
        "<img><ref>thedog</ref><box>[[1,2]]</box></img>"
    )


def test_ids_without_a_token_decode_to_nothing(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("dog", bos=False).ids
    assert tokenizer.decode([*ids, tokenizer.size + 5]) == "dog"
    assert tokenizer.decode([]) == ""


def test_part_of_a_character_decodes_to_replacement(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🐼", bos=False).ids
    pieces = [tokenizer.decode(ids[:end]) for end in range(1, len(ids) + 1)]
    assert pieces[-1] == "🐼"
    assert all("🐼" not in piece and set(piece) <= {"\ufffd"} for piece in pieces[:-1])


def test_user_text_cannot_write_special_tokens(tokenizer: Tokenizer) -> None:
    text = "a<img></img><IMG_CONTEXT><s></s><|im_end|><|im_start|><|eot_id|>" + "".join(tiny.UNUSED)
    reserved = {
        tokenizer.token_id(token) for token in (*tiny.IMAGE_TOKENS, "<|im_end|>", "<|im_start|>", "<s>")
    }
    encoding = tokenizer.encode(text, plain=[(0, len(text))], bos=False)
    assert not reserved & set(encoding.ids)
    assert not tokenizer.special_ids & set(encoding.ids)
    assert tokenizer.decode(encoding.ids) == text


def test_user_text_may_hold_grounding_tags(tokenizer: Tokenizer) -> None:
    text = "<ref>dog</ref><quad></quad><box></box>"
    found = set(tokenizer.encode(text, plain=[(0, len(text))]).ids)
    assert {tokenizer.token_id(tag) for tag in GROUNDING_TOKENS} <= found


def test_escaping_touches_nothing_but_the_plain_spans(tokenizer: Tokenizer) -> None:
    text = "<img>dog</img>"
    assert tokenizer.encode(text, plain=[(5, 8)]) == tokenizer.encode(text)


@given(text=st.text(st.sampled_from("<>/|[]im_ a\n书é🐼▁0"), max_size=30))
def test_plain_text_without_tokens_is_read_as_ever(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode(text, plain=[(0, len(text))]) == tokenizer.encode(text)


def test_lone_surrogates_do_not_crash(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a?b")


def test_saved_tokenizer_reads_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "new" / "place")
    again = load_tokenizer(tmp_path / "new" / "place")
    assert [again.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
    assert (again.size, again.bos_id, again.eos_id) == (tokenizer.size, tokenizer.bos_id, tokenizer.eos_id)


def test_begin_and_end_follow_class_and_flags(tmp_path: Path) -> None:
    llama = load_tokenizer(tiny.llama(tmp_path / "llama"))
    without = load_tokenizer(tiny.llama(tmp_path / "without", add_bos_token=False, add_eos_token=True))
    qwen2 = load_tokenizer(tiny.qwen2(tmp_path / "qwen2", add_bos_token=True))
    assert (llama.encode("dog").ids[0], llama.encode("dog").offsets[0]) == (1, (0, 0))
    assert without.encode("dog").ids == [*llama.encode("dog").ids[1:], 2]
    assert llama.encode("dog", bos=False, eos=True) == without.encode("dog")
    assert not qwen2.adds_bos


def test_begin_comes_from_the_post_processor(tmp_path: Path) -> None:
    with_begin = load_tokenizer(tiny.fast(tmp_path / "a", begin="<|begin_of_text|>"))
    without = load_tokenizer(tiny.fast(tmp_path / "b"))
    assert with_begin.encode("dog").ids == [
        with_begin.token_id("<|begin_of_text|>"),
        *without.encode("dog").ids,
    ]


def test_missing_begin_token_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no bos token"):
        load_tokenizer(tiny.qwen2(tmp_path)).encode("dog", bos=True)


def test_space_before_the_first_word_only(tmp_path: Path) -> None:
    added = (tiny.row("<img>"), tiny.row("<tool>", special=False))
    legacy = load_tokenizer(tiny.llama(tmp_path / "legacy", added=added))
    newer = load_tokenizer(tiny.llama(tmp_path / "newer", legacy=False, added=added))

    def tokens(one: Tokenizer, text: str) -> list[str | None]:
        return [one.token(id) for id in one.encode(text, bos=False).ids]

    assert tokens(legacy, "a<img>a") == ["▁a", "<img>", "▁a"]
    assert tokens(newer, "a<img>a") == ["▁a", "<img>", "a"]
    assert tokens(newer, "<img>a") == ["<img>", "a"]
    assert tokens(newer, "<tool>a") == ["▁", "<tool>", "a"]
    assert tokens(newer, "<img> a") == ["<img>", "▁a"]
    assert newer.encode("<img>a a").offsets == [(0, 0), (0, 5), (5, 6), (6, 8)]
    assert newer.encode("a a").offsets == [(0, 0), (0, 1), (1, 3)]
    assert legacy.encode(" a").offsets[:2] == [(0, 0), (0, 0)]


def test_token_that_eats_white_space(tmp_path: Path) -> None:
    added = (tiny.row("<|user|>", rstrip=True),)
    one = load_tokenizer(tiny.llama(tmp_path, legacy=False, added=added))
    encoding = one.encode("<|user|>\n a", bos=False)
    assert [one.token(id) for id in encoding.ids] == ["<|user|>", "a"]
    assert encoding.offsets == [(0, 8), (10, 11)]


def test_spaces_beside_added_tokens_when_all_is_shown(tmp_path: Path) -> None:
    one = load_tokenizer(tiny.internlm2(tmp_path))
    assert one.decode(one.encode("<|im_start|>a<img>b</img><|im_end|>").ids, skip_special=False) == (
        " <s><|im_start|>a <img> b </img>  <|im_end|>"
    )


def test_clean_up_follows_the_class(tmp_path: Path) -> None:
    text = "a dog , isn't it ?"
    internlm2 = load_tokenizer(tiny.internlm2(tmp_path / "a"))
    asked = load_tokenizer(tiny.llama(tmp_path / "b", clean_up_tokenization_spaces=True))
    qwen2 = load_tokenizer(tiny.qwen2(tmp_path / "c", clean_up_tokenization_spaces=True))
    assert internlm2.decode(internlm2.encode(text).ids) == "a dog, isn't it?"
    assert asked.decode(asked.encode(text).ids) == "a dog, isn't it?"
    assert qwen2.decode(qwen2.encode(text).ids) == text


def test_without_clean_up_more_ids_only_add_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a dog , isn 't it ? <ref>a</ref> ' .", bos=False).ids
    texts = [tokenizer.decode(ids[:end], cleans_up=False) for end in range(len(ids) + 1)]
    assert all(longer.startswith(shorter) for shorter, longer in pairwise(texts))
    assert texts[-1].startswith("a dog , isn 't it ?")


def test_token_with_an_alias(tmp_path: Path) -> None:
    one = load_tokenizer(tiny.llama(tmp_path))
    changed = one.with_token("<IMG_CONTEXT>", 0)
    assert changed.encode("<IMG_CONTEXT><IMG_CONTEXT>", bos=False).ids == [0, 0]
    assert (one.token_id("<IMG_CONTEXT>"), changed.token(0)) == (None, "<unk>")


def test_special_tokens_without_an_id_are_put_behind(tmp_path: Path) -> None:
    tiny.llama(
        tmp_path, added_tokens_decoder={}, additional_special_tokens=["<img>", "<s>"], pad_token="<pad>"
    )
    one = load_tokenizer(tmp_path)
    assert (one.token_id("<pad>"), one.token_id("<img>"), one.token_id("<s>")) == (420, 421, 1)
    assert one.pad_id == 420


def test_older_files_hold_added_tokens(tmp_path: Path) -> None:
    tiny.llama(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["added_tokens_decoder"], config["additional_special_tokens"]
    tiny.write_json(tmp_path, "tokenizer_config.json", config)
    tiny.write_json(tmp_path, "added_tokens.json", {"<img>": 420, "word": 421})
    tiny.write_json(tmp_path, "special_tokens_map.json", {"additional_special_tokens": ["<img>"]})
    one = load_tokenizer(tmp_path)
    ids = one.encode("<img>word", bos=False).ids
    assert ids == [420, 421]
    assert one.decode(ids) == "word"


@pytest.mark.parametrize("key", ["additional_special_tokens", "extra_special_tokens"])
def test_newer_files_name_their_special_tokens_otherwise(tmp_path: Path, key: str) -> None:
    value = {"context_image_token": "<img>"} if key.startswith("extra") else [{"content": "<img>"}]
    tiny.llama(tmp_path, **{"additional_special_tokens": None, key: value})
    assert load_tokenizer(tmp_path).token_id("<img>") == 420


def test_empty_directory_names_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(
        TokenizerError, match=r"tokenizer\.json, tokenizer\.model, or vocab\.json with merges\.txt"
    ):
        load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="not a directory"):
        load_tokenizer(tmp_path / "missing")


def test_half_a_vocabulary_is_named(tmp_path: Path) -> None:
    tiny.qwen2(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(TokenizerError, match=r"found tokenizer_config\.json, vocab\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_truncated_json_is_named(tmp_path: Path, name: str) -> None:
    path = tiny.fast(tmp_path) / name
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(TokenizerError, match=f"{name} is not valid JSON"):
        load_tokenizer(tmp_path)


def test_truncated_pieces_are_named(tmp_path: Path) -> None:
    path = tiny.llama(tmp_path) / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(TokenizerError, match=r"tokenizer\.model cannot be read"):
        load_tokenizer(tmp_path)


def test_pieces_of_an_unknown_class_are_refused(tmp_path: Path) -> None:
    tiny.llama(tmp_path, tokenizer_class="OtherTokenizer")
    with pytest.raises(TokenizerError, match=r"'OtherTokenizer'.*LlamaTokenizer"):
        load_tokenizer(tmp_path)
