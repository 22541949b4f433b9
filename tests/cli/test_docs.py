"""Every command line of docs/how-to/cli.md and train.md is one that is understood."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from internvl.cli.arguments import parse
from internvl.cli.main import COMMANDS

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"
TEXT, GUIDE = ((HOW_TO / name).read_text(encoding="utf-8") for name in ("cli.md", "train.md"))
BLOCKS = re.findall(r"^```\n(.*?)^```$", TEXT + GUIDE, re.MULTILINE | re.DOTALL)
LINES = [
    line[line.index("internvl ") :] for block in BLOCKS for line in block.splitlines() if "internvl " in line
]


def test_the_table_lists_what_exists() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", TEXT, re.MULTILINE)
    assert [name for name, _ in rows] == list(COMMANDS)
    assert len(LINES) > 15


@pytest.mark.parametrize("line", LINES)
def test_command_lines_are_understood(line: str) -> None:
    _, command, *words = shlex.split(line, comments=True)
    module = importlib.import_module(COMMANDS[command][0].partition(":")[0])
    rest = {"chat": "words", "explain": "words", "features": "pictures"}.get(command)
    assert isinstance(parse(module.Options, words, command, rest=rest), module.Options)
