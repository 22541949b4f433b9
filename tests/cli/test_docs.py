"""Every command line of the guides under docs/how-to is one that is understood."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from internvl.cli.arguments import parse
from internvl.cli.main import COMMANDS

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"
TEXT = (HOW_TO / "cli.md").read_text(encoding="utf-8")
GUIDES = "".join(path.read_text(encoding="utf-8") for path in sorted(HOW_TO.glob("*.md")))
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", GUIDES, re.MULTILINE | re.DOTALL)
BLOCKS = [block for language, block in FENCED if not language]
LINES = [
    line[line.index("internvl ") :] for block in BLOCKS for line in block.splitlines() if "internvl " in line
]


def test_the_table_lists_what_exists() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (.+) \|$", TEXT, re.MULTILINE)
    assert [name for name, _ in rows] == list(COMMANDS)
    assert len(LINES) > 15


@pytest.mark.parametrize("line", LINES)
def test_command_lines_are_understood(line: str) -> None:
    _, command, *words = shlex.split(line, comments=True)
    module = importlib.import_module(COMMANDS[command][0].partition(":")[0])
    if words and words[0] in getattr(module, "FORMS", {}):
        module = importlib.import_module(module.FORMS[words.pop(0)].__module__)
    names = ("words",) if command in ("chat", "explain") else ("pictures", "inputs", "embeddings", "queries")
    rest = next((name for name in names if hasattr(module.Options, name)), None)
    assert isinstance(parse(module.Options, words, command, rest=rest), module.Options)
