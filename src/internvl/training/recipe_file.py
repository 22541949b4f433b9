"""Recipes as JSON, and changes to them from the command line.

The dataclasses of `training.recipe` are the only description of the form: their annotations say what a value
may be, and an unknown name is an error that lists the known ones. Knows no model and no data.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from internvl.errors import InputError
from internvl.training.recipe import Recipe

TYPE = "type"
"""Says which of several dataclasses a field holds, by the name of the class."""

MAX_BYTES = 1_000_000
NONE = type(None)


def dump(recipe: Recipe) -> dict[str, Any]:
    """Every field, defaults included; tuples become lists."""
    document: dict[str, Any] = _encoded(recipe, Recipe)
    return document


def load(document: Mapping[str, Any]) -> Recipe:
    """The inverse of `dump`; fields that are left out have their defaults.

    Raises InputError naming the field that is unknown, missing or of another type, or, of the recipe itself,
    for values that do not go together.
    """
    recipe = _decoded(document, Recipe, "recipe")
    if not isinstance(recipe, Recipe):
        raise InputError("a recipe is a JSON object")
    return recipe


def write(path: Path, recipe: Recipe) -> None:
    """`path` as JSON, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    text = json.dumps(dump(recipe), indent=2, ensure_ascii=False) + "\n"
    # A path that is not UTF-8 becomes JSON's own escapes, which are read back as the same path.
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    partial.replace(path)


def read(path: Path) -> Recipe:
    """The recipe that `write` saved. Raises InputError for a file that is none."""
    if not path.is_file():
        raise InputError(f"no recipe file {path}")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path} has {path.stat().st_size} bytes; a recipe has at most {MAX_BYTES}")
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    return load(document)


def override(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """`recipe` with settings like "schedule.warmup=100" applied in order, then checked as a whole.

    Values are JSON; text needs no quotes, "none" empties a field that may be empty. A number in the path is
    a place in a list ("params.0.1.lr=1e-4" is the learning rate of the first rule). A part that is None is
    first made with its defaults; "objective.type=Preference" changes the kind. Raises as `load`.
    """
    document = dump(recipe)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise InputError(f"{setting!r} is no setting: write name=value, e.g. schedule.warmup=100")
        document = _with(document, Recipe, path.split("."), text, path)
    return load(document)


def _with(node: Any, hint: Any, path: list[str], text: str, whole: str) -> Any:
    """A copy of `node`, of which `hint` says what it may be, with the value at `path` replaced."""
    if not path:
        return _parsed(text, hint)
    name, rest = path[0], path[1:]
    if get_origin(_present(hint)) is tuple:
        return _with_item(node, _present(hint), name, rest, text, whole)
    kinds = _dataclasses(hint)
    if not kinds:
        raise InputError(f"{whole}: there is nothing below this field, so {name!r} cannot be set")
    if name == TYPE and len(kinds) > 1 and not rest:
        return {TYPE: text}
    node = {} if node is None else node
    inner = get_type_hints(_kind(node, kinds, whole))
    if name not in inner:
        raise InputError(f"{whole}: no field {name!r}; there are {', '.join(inner)}")
    return {**node, name: _with(node.get(name), inner[name], rest, text, whole)}


def _with_item(node: Any, hint: Any, name: str, rest: list[str], text: str, whole: str) -> Any:
    items = list(node)
    if not name.isdecimal() or int(name) >= len(items):
        raise InputError(
            f"{whole}: {name!r} is no place in a list of {len(items)}; they count from 0, and the whole list "
            "can be given as JSON"
        )
    place = int(name)
    items[place] = _with(items[place], _item_hints(hint, len(items))[place], rest, text, whole)
    return items


def _parsed(text: str, hint: Any) -> Any:
    members = _members(hint)
    if NONE in members and text.lower() in ("none", "null"):
        return None
    if str in members:
        return text
    try:
        return json.loads(text.lower() if bool in members else text)
    except (ValueError, RecursionError):
        return text  # what it should have been is said when the recipe is loaded


def _encoded(value: Any, hint: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = get_type_hints(type(value))
        fields = {name: _encoded(getattr(value, name), inner) for name, inner in hints.items()}
        return {TYPE: type(value).__name__, **fields} if len(_dataclasses(hint)) > 1 else fields
    if isinstance(value, tuple):
        hints_of_items = _item_hints(_present(hint), len(value))
        return [_encoded(item, inner) for item, inner in zip(value, hints_of_items, strict=True)]
    return value


def _decoded(value: Any, hint: Any, where: str) -> Any:
    """`value` as `hint` has it. Raises InputError saying where and what."""
    if value is None and NONE in _members(hint):
        return None
    kinds, present = _dataclasses(hint), _present(hint)
    if kinds:
        return _decoded_object(value, _kind(value, kinds, where), where, is_named=len(kinds) > 1)
    if get_origin(present) is tuple:
        return _decoded_tuple(value, present, where)
    if get_origin(present) is Literal:
        if value not in get_args(present):
            raise InputError(f"{where} is one of {', '.join(map(str, get_args(present)))}, not {value!r}")
        return value
    return _decoded_scalar(value, present, where)


def _decoded_object(value: Any, kind: type, where: str, *, is_named: bool) -> Any:
    hints = get_type_hints(kind)
    given = {name: inner for name, inner in value.items() if not (is_named and name == TYPE)}
    unknown = [name for name in given if name not in hints]
    if unknown:
        raise InputError(f"{where} has no field {unknown[0]!r}; there are {', '.join(hints)}")
    missing = [
        one.name
        for one in dataclasses.fields(kind)
        if one.name not in given
        and one.default is dataclasses.MISSING
        and one.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise InputError(f"{where} needs {', '.join(missing)}")
    return kind(**{name: _decoded(inner, hints[name], f"{where}.{name}") for name, inner in given.items()})


def _decoded_tuple(value: Any, hint: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise InputError(f"{where} is a JSON list, not {value!r}")
    hints = _item_hints(hint, len(value))
    if len(hints) != len(value):
        raise InputError(f"{where} has {len(hints)} values, not {len(value)}: {value!r}")
    rows = enumerate(zip(value, hints, strict=True))
    return tuple(_decoded(item, inner, f"{where}.{index}") for index, (item, inner) in rows)


def _decoded_scalar(value: Any, hint: Any, where: str) -> Any:
    """A whole number may stand for a float; nothing else changes its type."""
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        with suppress(OverflowError):  # one that is too large stays whole, and is refused
            value = float(value)
    is_right = isinstance(value, hint) and not (hint is int and isinstance(value, bool))
    if not is_right or (isinstance(value, float) and not math.isfinite(value)):
        wanted = {float: "a finite number", int: "a whole number", bool: "true or false"}.get(hint, "text")
        raise InputError(f"{where} is {wanted}, not {value!r}")
    return value


def _kind(value: Any, kinds: tuple[type, ...], where: str) -> type:
    """The dataclass that an object is meant to be: the only one, or the one its `type` names."""
    if not isinstance(value, Mapping):
        raise InputError(f"{where} is a JSON object, not {value!r}")
    if len(kinds) == 1:
        return kinds[0]
    named = {kind.__name__: kind for kind in kinds}
    name = value.get(TYPE)
    if not isinstance(name, str) or name not in named:
        raise InputError(f"{where}.{TYPE} is one of {', '.join(named)}, not {name!r}")
    return named[name]


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _present(hint: Any) -> Any:
    """The annotation without None; of several other kinds, the union as it is."""
    left = [member for member in _members(hint) if member is not NONE]
    return left[0] if len(left) == 1 else hint


def _dataclasses(hint: Any) -> tuple[type, ...]:
    return tuple(one for one in _members(hint) if isinstance(one, type) and dataclasses.is_dataclass(one))


def _item_hints(hint: Any, count: int) -> list[Any]:
    """What each of `count` places of a tuple may hold; as many as the tuple has, where that is fixed."""
    args = get_args(hint)
    return [args[0]] * count if args[-1] is Ellipsis else list(args)
