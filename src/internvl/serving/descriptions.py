"""Descriptions of what a server keeps: a dataclass each, as a JSON file under its id.

One that is damaged is told, left as it is, and keeps nothing else from being found. Knows no HTTP.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from internvl.errors import RequestError

Described = TypeVar("Described")

_log = logging.getLogger(__name__)


def write(described: Any, path: Path) -> None:
    """Whole or not at all. Raises OSError."""
    beside = path.with_suffix(".part")
    try:
        beside.write_text(json.dumps(asdict(described)), encoding="utf-8")
        beside.replace(path)
    except OSError:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def read(form: TypeAdapter[Described], path: Path) -> Described:
    """Raises RequestError with 404 for a damaged one, and FileNotFoundError."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        described = form.validate_python(fields)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as reason:
        raise _damaged(path, _told(reason)) from reason
    if fields["id"] != path.stem:
        raise _damaged(path, f"it is that of {fields['id'][:80]!r}")
    return described


def read_all(form: TypeAdapter[Described], paths: Iterable[Path], *, tells: bool = False) -> list[Described]:
    """Those that are there and whole. With `tells`, each damaged one has a line in the log."""
    found: list[Described] = []
    for path in paths:
        try:
            found.append(read(form, path))
        except FileNotFoundError:
            continue  # deleted meanwhile
        except RequestError as reason:
            if tells:
                _log.error("%s is left alone: %s", path, reason)
    return found


def _told(reason: Exception) -> str:
    """In one line, without what stands in the file."""
    if isinstance(reason, ValidationError):
        first = reason.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}"
    return (reason.strerror if isinstance(reason, OSError) else str(reason)) or type(reason).__name__


def _damaged(path: Path, why: str) -> RequestError:
    return RequestError(
        f"the description of {path.stem} is damaged ({why}): repair or remove it",
        status=404,
        code="damaged_description",
    )
