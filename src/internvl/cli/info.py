"""`internvl info`: this installation and machine; with a name, one model of the zoo or one checkpoint.

Reads headers of weight files only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from internvl import zoo
from internvl.checkpoints.configs import describe
from internvl.checkpoints.hub import cache_directory, is_offline
from internvl.checkpoints.load import build
from internvl.checkpoints.locate import resolve
from internvl.checkpoints.resolve import open_checkpoint
from internvl.cli import machine, output
from internvl.cli.arguments import Flag, parse
from internvl.config import ChatConfig, ContrastiveConfig, TextConfig, VisionConfig
from internvl.errors import CheckpointError, ConfigError, HubError, UnknownNameError

LONGEST_TUPLE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Versions, devices, cache and extras of this installation; or what one model is made of.

    A checkpoint's files are opened but its weights are not read.
    """

    name: Annotated[Positional[str | None], arg(metavar="[NAME]", help_behavior_hint="")] = None
    """A name of the zoo, a checkpoint directory or a weight file."""
    models: Flag = False
    """List all models of the zoo."""
    json: Flag = False
    """Print one JSON document instead of tables."""


def run(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = parse(Options, words, "info")
    if options.models:
        _show_models(options.json)
    elif options.name is None:
        _show("internvl", describe_installation(), options.json)
    else:
        _show(options.name, describe_model(options.name), options.json)
    return 0


def describe_installation() -> dict[str, Any]:
    """Everything a bug report needs."""
    return {
        "versions": machine.versions(),
        "torch": machine.torch_build(),
        "machine": machine.describe_processor(),
        "devices": machine.devices(),
        "extras": machine.extras(),
        "cache": str(cache_directory()),
        "offline": is_offline(),
        "models": len(zoo.CARDS),
    }


def describe_model(name: str) -> dict[str, Any]:
    """A path as a checkpoint, anything else as a row of the zoo. Raises UnknownNameError for neither."""
    path = Path(name).expanduser()
    if path.exists():
        return describe_checkpoint(path)
    try:
        return describe_card(zoo.find(name))
    except UnknownNameError as error:
        raise UnknownNameError(f"no file or directory {name!r}, and {error}") from error


def describe_card(card: zoo.ModelCard) -> dict[str, Any]:
    """A row of the zoo, with the exact size of its shape and where it lies on this machine."""
    row = {name: value for name, value in asdict(card).items() if name not in ("config", "parameters")}
    found: dict[str, Any] = {
        **row,
        "template": card.template,
        "billion_parameters": card.parameters,
        "on_disk": _cached(card.name),
    }
    return found if card.config is None else {**found, **describe_config(card.config)}


def describe_config(config: ChatConfig | ContrastiveConfig | VisionConfig | TextConfig) -> dict[str, Any]:
    """Configuration, exact number of parameters, vision tokens of a tile."""
    described: dict[str, Any] = {"config": asdict(config)}
    if not isinstance(config, TextConfig):
        described["parameters"] = sum(weight.numel() for weight in build(config).parameters())
    if isinstance(config, ChatConfig):
        described["tokens_per_tile"] = config.tokens_per_tile
    return described


def describe_checkpoint(path: Path) -> dict[str, Any]:
    """Configuration, layout, tensors and files; weights that cannot be opened are a remark."""
    folder = path if path.is_dir() else path.parent
    files = {item.name: item.stat().st_size for item in sorted(folder.iterdir()) if item.is_file()}
    found: dict[str, Any] = {"path": str(path), "files": files, "bytes": sum(files.values())}
    try:
        opened = open_checkpoint(path)
    except ConfigError:
        raise
    except CheckpointError as error:
        description = describe(path)
        weights: dict[str, Any] = {"weights": f"cannot be opened: {error}"}
    else:
        description = opened.description
        weights = {
            "layout": opened.layout.name,
            **_count(opened.tensors),
            "unexpected": list(opened.unexpected),
        }
    family = description.family.name if description.family else None
    named = {"kind": description.kind, "family": family, "dtype": description.dtype}
    packing = description.packing
    packed = {} if packing is None else {"packed": packing.summary, "measured": dict(packing.measured)}
    return {**found, **named, **packed, **describe_config(description.config), **weights}


def _count(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """How many tensors and values there are, and the bytes of each dtype as stored."""
    stored: Counter[str] = Counter()
    num_values = 0
    for tensor in tensors.values():
        count = 1
        for length in tensor.shape:
            count *= length
        num_values += count
        stored[str(tensor.dtype).removeprefix("torch.")] += count * tensor.dtype.itemsize
    return {"tensors": len(tensors), "stored_parameters": num_values, "stored_bytes": dict(stored)}


def _cached(name: str) -> str | None:
    try:
        return str(resolve(name, offline=True))
    except (HubError, UnknownNameError):
        return None


def _show(title: str, found: Mapping[str, Any], is_json: bool) -> None:
    if is_json:
        output.write_json(found)
    else:
        output.write_pairs(title, _flat(found))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as dotted names, for people: sizes in units, long tuples by their length."""
    for name, value in values.items():
        label = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{label}.")
        elif isinstance(value, list | tuple) and len(value) > LONGEST_TUPLE:
            yield label, f"{len(value)} values"
        elif isinstance(value, list | tuple):
            yield label, ", ".join(map(str, value)) or "none"
        elif (
            isinstance(value, int)
            and not isinstance(value, bool)
            and ("bytes" in label or prefix == "files.")
        ):
            yield label, output.size(value)
        elif isinstance(value, bool | None):
            yield label, {True: "yes", False: "no", None: "-"}[value]
        else:
            yield label, f"{value:,}" if name.endswith("parameters") else str(value)


def _show_models(is_json: bool) -> None:
    cards = [
        {
            "name": card.name,
            "kind": card.kind,
            "billion_parameters": card.parameters,
            "template": card.template,
            "released": card.released,
            "loads": card.supported,
        }
        for card in zoo.CARDS
    ]
    if is_json:
        output.write_json({"models": cards})
        return
    rows = [[_cell(value) for value in card.values()] for card in cards]
    output.write_table(f"{len(cards)} models", list(cards[0]), rows)


def _cell(value: object) -> str:
    return (
        {True: "yes", False: "no"}[value] if isinstance(value, bool) else "-" if value is None else str(value)
    )
