"""Answers of a given form: every id is allowed by it, guesses or not, and bad forms are refused."""

from __future__ import annotations

import asyncio
import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from internvl.engine.async_engine import AsyncEngine
from internvl.engine.constraint import Constraint, ConstraintKind, FormMaker, Vocabulary
from internvl.engine.engine import Engine
from internvl.engine.settings import EngineSettings
from internvl.errors import InputError
from internvl.models.vlm import VLM
from tests.engine.tiny import SLOT, finish, ids_of, last_of, make_engine, make_request

pytest.importorskip("llguidance")

WORDS = [*(bytes([byte]) for byte in b'abcdefghij{}":,0123'), b'"a":', b"ab", *[b""] * 5]
END = 24
"""Ids from 21 on have no text; this one ends answers."""


def encode(text: str) -> list[int]:
    return [WORDS.index(byte.encode()) for byte in text]


def decode(ids: Any) -> str:
    return b"".join(WORDS[id] for id in ids).decode()


def make(vlm: VLM, **settings: Any) -> Engine:
    vocabulary = Vocabulary(tokens=WORDS, special_ids=(END, SLOT), end_id=END, encode=encode)
    return Engine(
        vlm,
        decode=decode,
        slot_id=SLOT,
        vocabulary=vocabulary,
        settings=EngineSettings(page_size=4, num_pages=64, max_running=8, max_step_tokens=24, **settings),
    )


def answer(vlm: VLM, kind: ConstraintKind, value: Any, num_drafts: int = 0, **sampling: Any) -> str:
    engine = make(vlm, num_drafts=num_drafts)
    constraint = Constraint(kind=kind, value=value)
    options = {"max_new_tokens": 60, "stop_ids": (END,), **sampling}
    engine.submit(make_request("a", [1, 2, 3], constraint=constraint, **options))
    deltas = finish(engine)
    last = last_of(deltas, "a")
    assert last.finish_reason == "stop", last
    assert ids_of(deltas, "a")[-1] == END
    return "".join(delta.text for delta in deltas)


FORM = "ab[0-3]{2,4}(cd){1,5}e{3}"
SAMPLINGS = ({}, {"temperature": 1.0, "seed": 1}, {"temperature": 2.0, "seed": 2, "repetition_penalty": 1.2})


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("num_drafts", [0, 4])
def test_regular_expressions(vlm: VLM, sampling: dict[str, Any], num_drafts: int) -> None:
    text = answer(vlm, "regex", FORM, num_drafts, **sampling)
    assert re.fullmatch(FORM, text)
    assert text == answer(vlm, "regex", FORM, 0, **sampling)


@pytest.mark.parametrize("num_drafts", [0, 4])
def test_json_schemas(vlm: VLM, num_drafts: int) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["ab", "cd"]}, "b": {"type": "integer", "minimum": 0, "maximum": 30}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    text = answer(vlm, "json_schema", json.dumps(schema), num_drafts)
    made = json.loads(text)
    assert made["a"] in ("ab", "cd")
    assert 0 <= made["b"] <= 30
    assert set(made) == {"a", "b"}
    assert not set(text) & set(" \n")


def test_one_form_serves_many_answers(vlm: VLM) -> None:
    engine = make(vlm)
    constraint = Constraint(kind="regex", value=FORM)
    engine.submit(
        make_request(
            "a", [1], constraint=constraint, n=4, temperature=2.0, seed=1, stop_ids=(END,), max_new_tokens=60
        )
    )
    deltas = finish(engine)
    texts = {"".join(one.text for one in deltas if one.index == index) for index in range(4)}
    assert len(texts) > 1
    assert all(re.fullmatch(FORM, text) for text in texts)


def test_grammars_and_choices(vlm: VLM) -> None:
    assert re.fullmatch("(ab|cd)+", answer(vlm, "grammar", 'start: pair (pair)?\npair: "ab" | "cd"'))
    assert answer(vlm, "choice", ("abba", "cab", "3")) in ("abba", "cab", "3")
    assert answer(vlm, "choice", ("ab", "a\x7fb\n\0")) in ("ab", "a\x7fb\n\0")


def test_bad_forms_are_refused(vlm: VLM) -> None:
    engine = make(vlm)
    wrong: list[tuple[ConstraintKind, Any, str]] = [
        ("regex", "a(", "this regex cannot be followed"),
        ("grammar", "start: nothing", "this grammar cannot be followed"),
        ("json_schema", "{", "this json_schema cannot be followed"),
        ("json_schema", '{"type": "nothing"}', "this json_schema cannot be followed"),
        ("choice", (), "some texts that are not empty"),
        ("regex", ("a",), "a regex is one text"),
        ("regex", "a\ud800", "characters that are no text"),
        ("choice", ("a", "\ud800"), "characters that are no text"),
    ]
    for kind, value, message in wrong:
        request = make_request(
            "a", [1], constraint=Constraint(kind=kind, value=value), stop_ids=(END,), max_new_tokens=9
        )
        with pytest.raises(InputError, match=message):
            engine.submit(request)
    constraint = Constraint(kind="regex", value="a")
    with pytest.raises(InputError, match="put it into stop_ids"):
        engine.submit(make_request("a", [1], constraint=constraint, max_new_tokens=9))
    with pytest.raises(InputError, match="leave min_new_tokens at 0"):
        make_request("a", [1], constraint=constraint, min_new_tokens=2, stop_ids=(END,))
    with pytest.raises(InputError, match="need the engine's vocabulary"):
        Engine(vlm, settings=EngineSettings(num_pages=9)).submit(
            make_request("a", [1], constraint=constraint, stop_ids=(END,), max_new_tokens=9)
        )
    assert not engine.has_work


def test_the_vocabulary_is_read_before_the_first_request(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Vocabulary] = []
    begin = FormMaker.__init__

    def watched(self: FormMaker, vocabulary: Vocabulary) -> None:
        made.append(vocabulary)
        begin(self, vocabulary)

    monkeypatch.setattr(FormMaker, "__init__", watched)
    engine = make(vlm)

    async def ask() -> None:
        async with AsyncEngine(engine) as front:
            assert made == [engine.intake.language.vocabulary]
            request = make_request(
                "a", [1], constraint=Constraint(kind="regex", value="ab"), stop_ids=(END,), max_new_tokens=9
            )
            assert [delta.text async for delta in front.stream(request)][-1] == ""

    asyncio.run(asyncio.wait_for(ask(), 300))
    engine.warm_up()
    assert len(made) == 1


def test_without_a_vocabulary_there_is_nothing_to_read(vlm: VLM) -> None:
    engine = make_engine(vlm)
    engine.warm_up()
    with pytest.raises(InputError, match="vocabulary"):
        engine.plan(make_request("a", [1], constraint=Constraint(kind="regex", value="a")))


def test_one_form_may_be_asked_for_by_many_threads() -> None:
    forms = FormMaker(Vocabulary(tokens=WORDS, special_ids=(END, SLOT), end_id=END, encode=encode))
    constraint = Constraint(kind="regex", value="ab|cd")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: forms.start(constraint).allowed(len(WORDS)).tolist(), range(16)))
    assert found == [found[0]] * 16
    assert any(found[0])
