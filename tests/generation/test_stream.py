"""Text that comes token by token: whole characters only, nothing lost, bounded work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from internvl.generation.stream import MAX_WINDOW, REPLACEMENT, Decode, Detokenizer, TextStream
from tests.conftest import GoldenFixtures

TEXTS = ["Hello, world", "红熊猫在吃竹子。", "emoji 👩‍🚀🐼 and ñ", "a\n\nb  c", "𝔘𝔫𝔦", "  leading"]


def by_bytes(ids: Sequence[int]) -> str:
    """Byte-level tokenizers: one replacement character for an unfinished character."""
    return bytes(ids).decode("utf-8", errors="replace")


def by_pieces(ids: Sequence[int]) -> str:
    """SentencePiece: one replacement character a wrong byte, and the first space is not written."""
    text = bytes(ids).decode("utf-8", errors="surrogateescape")
    shown = "".join(REPLACEMENT if "\udc80" <= c <= "\udcff" else c for c in text)
    return shown.removeprefix(" ")


def by_runs(ids: Sequence[int]) -> str:
    """Byte fallback of `tokenizers`: a run of bytes above 127 is wrong as a whole or not at all."""
    parts = [bytes(run) for _, run in groupby(ids, key=lambda index: index > 127)]
    texts = [part.decode("utf-8", errors="replace") for part in parts]
    return "".join(
        REPLACEMENT * len(part) if REPLACEMENT in text else text
        for part, text in zip(parts, texts, strict=True)
    )


DECODERS: dict[str, Decode] = {"bytes": by_bytes, "pieces": by_pieces, "runs": by_runs}


def pieces_of(decode: Decode, ids: Sequence[int]) -> list[str]:
    detokenizer = Detokenizer(decode)
    return [*map(detokenizer.push, ids), detokenizer.finish()]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("text", TEXTS)
def test_no_half_characters(decoder: str, text: str) -> None:
    ids = list((text * 5).encode())
    pieces = pieces_of(DECODERS[decoder], ids)
    assert "".join(pieces) == DECODERS[decoder](ids)
    assert REPLACEMENT not in "".join(pieces)
    assert pieces[-1] == ""
    assert max(map(len, pieces)) == 1


@pytest.mark.parametrize("decoder", ["bytes", "pieces"])
@given(ids=st.lists(st.integers(0, 255) | st.integers(0xE0, 0xE8) | st.integers(0x80, 0x90), max_size=200))
def test_any_bytes_come_out_as_decoded_whole(decoder: str, ids: list[int]) -> None:
    assert "".join(pieces_of(DECODERS[decoder], ids)) == DECODERS[decoder](ids)


@pytest.mark.parametrize("decoder", DECODERS)
@given(text=st.text(st.characters(codec="utf-8"), max_size=80))
def test_any_text_comes_out_as_it_is(decoder: str, text: str) -> None:
    ids = list(text.encode())
    assert "".join(pieces_of(DECODERS[decoder], ids)) == DECODERS[decoder](ids)


@pytest.mark.parametrize("ids", [[*b"plain text "] * 100, [0xFF] * 1000, [0] * 1000, [*"猫".encode()] * 300])
def test_work_per_token_is_bounded(ids: list[int]) -> None:
    sizes: list[int] = []

    def counted(window: Sequence[int]) -> str:
        sizes.append(len(window))
        return by_bytes(window)

    pieces = pieces_of(counted, ids)
    assert max(sizes) <= MAX_WINDOW
    assert sum(sizes) <= MAX_WINDOW * len(ids)
    assert "".join(pieces) == by_bytes(ids)


def test_tokens_without_text_keep_the_space_after_them() -> None:
    words = {0: "", 1: " one", 2: " two"}

    def decode(ids: Sequence[int]) -> str:
        return "".join(words[index] for index in ids).removeprefix(" ")

    ids = [1, *[0] * 40, 2, 1]
    assert "".join(pieces_of(decode, ids)) == decode(ids) == "one two one"


def qwen2(golden_dir: GoldenFixtures) -> Decode:
    tokenizer = Tokenizer.from_file(str(golden_dir / "internvl2_5_qwen2" / "tokenizer.json"))
    return lambda ids: str(tokenizer.decode(list(ids)))


def internlm2(golden_dir: GoldenFixtures) -> Decode:
    model = sentencepiece.SentencePieceProcessor()
    model.Load(str(golden_dir / "internvl1_5_internlm2" / "tokenizer.model"))
    return lambda ids: str(model.Decode(list(ids)))


@pytest.mark.parametrize("make", [qwen2, internlm2])
def test_real_tokenizers(golden_dir: GoldenFixtures, make: Callable[[GoldenFixtures], Decode]) -> None:
    decode = make(golden_dir)

    @given(ids=st.lists(st.integers(3, 500), max_size=120))
    def check(ids: list[int]) -> None:
        assert "".join(pieces_of(decode, ids)) == decode(ids)

    check()


def test_stream_joins_both() -> None:
    stream = TextStream(by_bytes, ["熊猫"])
    shown = [stream.push(byte) for byte in "红熊熊猫。".encode()]
    assert [piece for piece in shown if piece] == ["红", "熊"]
    assert stream.is_stopped
    assert stream.finish() == ""


def test_stream_gives_back_what_was_no_stop_string() -> None:
    stream = TextStream(by_bytes, ["熊猫"])
    shown = "".join(stream.push(byte) for byte in "红熊".encode())
    assert (shown, stream.finish(), stream.is_stopped) == ("红", "熊", False)


def test_stream_without_decode_has_no_text() -> None:
    stream = TextStream(None, [])
    assert (stream.push(5), stream.finish(), stream.is_stopped) == ("", "", False)
