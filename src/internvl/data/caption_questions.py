"""What is asked of a picture that comes with captions and no question of its own.

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


def draw_question(draw: random.Random | None, language: str, questions: Sequence[str] = ()) -> str:
    """The first of `questions` half of the time, else one of the others; without `draw` the first always.

    Without `questions`: those of the language, English where it has none.
    """
    asked = questions or CAPTION_QUESTIONS.get(language, CAPTION_QUESTIONS["en"])
    if draw is None or len(asked) == 1 or draw.random() < 0.5:
        return asked[0]
    return draw.choice(asked[1:])
