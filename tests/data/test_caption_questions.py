"""Questions for captions."""

from __future__ import annotations

import random

from internvl.data.caption_questions import CAPTION_QUESTIONS, draw_question


def test_the_first_is_asked_half_of_the_time_and_every_other_sometimes() -> None:
    draw = random.Random(0)
    asked = [draw_question(draw, "en") for _ in range(2000)]
    assert set(asked) == set(CAPTION_QUESTIONS["en"])
    assert 0.45 < asked.count(CAPTION_QUESTIONS["en"][0]) / len(asked) < 0.55


def test_languages_without_questions_are_asked_in_english() -> None:
    assert draw_question(random.Random(0), "fr") in CAPTION_QUESTIONS["en"]
    assert draw_question(random.Random(0), "zh") in CAPTION_QUESTIONS["zh"]


def test_own_questions() -> None:
    assert draw_question(random.Random(0), "zh", ("Why?",)) == "Why?"
