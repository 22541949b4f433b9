"""Languages of captions, and what is asked of a picture that comes with captions and no question of its own.

Knows no files and no template.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

CAPTION_QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "en": (
        "Provide a one-sentence caption for the provided image.",
        "Describe this photo.",
        "Describe this image in one sentence.",
        "What is in this picture?",
        "What do you see in this image?",
        "Please describe the image shortly.",
    ),
    "zh": (
        "请用一句话描述这张图片。",
        "描述这张照片。",
        "这张图片里有什么？",
        "你在图中看到了什么？",
        "请简短地描述图片。",
    ),
}
"""By language; the first one is what evaluation asks."""

_CODES = (
    "aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da "
    "de dv dz ee el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz "
    "ia ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo "
    "lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn nr nv ny oc oj om or os pa pi pl ps "
    "pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti tk tl "
    "tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu"
)
LANGUAGES = frozenset(_CODES.split())
"""Codes of two letters (ISO 639-1) under which a row may have captions. `id` and `no` are left out: rows have
numbers there."""


def draw_question(draw: random.Random | None, language: str, questions: Sequence[str] = ()) -> str:
    """The first of `questions` half of the time, else one of the others; without `draw` the first always.

    Without `questions`: those of the language, English where it has none.
    """
    asked = questions or CAPTION_QUESTIONS.get(language, CAPTION_QUESTIONS["en"])
    if draw is None or len(asked) == 1 or draw.random() < 0.5:
        return asked[0]
    return draw.choice(asked[1:])
