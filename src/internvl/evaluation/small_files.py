"""Text and JSON files that are read whole, up to a size that is stated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from internvl.errors import InputError


def read_text(path: Path, max_bytes: int) -> str:
    """A UTF-8 file. Raises InputError for one that is missing, larger, or of another encoding."""
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as reason:
        raise InputError(f"cannot read {path}: {reason}") from reason
    if len(content) > max_bytes:
        raise InputError(f"{path} has more than {max_bytes} bytes, the most that is read of such a file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        raise InputError(f"{path} is not UTF-8: {reason}") from reason


def read_json(path: Path, max_bytes: int) -> Any:
    """The value in a JSON file. Raises InputError as `read_text`, and for what is no JSON."""
    return parse_json(read_text(path, max_bytes), str(path))


def parse_json(text: str, where: str) -> Any:
    """The value of JSON text; `where` it stands begins the error."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as reason:
        raise InputError(f"{where}: not JSON: {reason}") from reason
