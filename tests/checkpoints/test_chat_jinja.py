"""Strings in a Jinja template; what it renders is compared with ours in `tests/parity`."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from internvl.chat_templates import TEMPLATES
from internvl.checkpoints.chat_jinja import chat_jinja


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_name_is_left_open(name: str) -> None:
    outside = re.sub(r'"(\\.|[^"\\])*"', '""', chat_jinja(TEMPLATES[name]))
    assert re.findall("[A-Z]+", outside) == []


def test_texts_are_quoted_and_never_taken_for_names() -> None:
    template = replace(TEMPLATES["Hermes-2"], system_message='PICTURE "of" a \\ and\nSYSTEM_END 你好')
    assert 'set system = "PICTURE \\"of\\" a \\\\ and\\nSYSTEM_END 你好" %}' in chat_jinja(template)
