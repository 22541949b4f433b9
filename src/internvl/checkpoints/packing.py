"""How config.json says that linear layers are packed for the CPU's kernels: which, how, and what it costs.

The bytes of a packed weight depend on the layout of this version's panels, so its digest stands beside every
scheme; a file of another layout is refused. Knows no tensors (see `checkpoints.mapped`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from internvl.adapt.quantize import digest_of, known_scheme
from internvl.checkpoints.fields import MAX_LAYERS, Fields
from internvl.checkpoints.read import read_json
from internvl.errors import ConfigError, InputError

FIELD = "quantization_config"
"""Where other programs look too: they then refuse the method by its name."""
METHOD = "internvl_panels"
VERSION = 1
MOST = 16 * MAX_LAYERS
"""Packed layers: a model has two stacks of at most MAX_LAYERS, with a handful of linear layers each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Schemes of the packed layers, by name; `measured` is what packing cost (`api.packing.Loss`)."""

    layers: Mapping[str, str]
    measured: Mapping[str, float] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """ "170 layers int8, 2 bfloat16"."""
        counts = Counter(self.layers.values()).most_common()
        return ", ".join(
            f"{count} layers {scheme}" if not index else f"{count} {scheme}"
            for index, (scheme, count) in enumerate(counts)
        )

    def part(self, prefix: str) -> Packing:
        """The layers below a prefix, by the names they have there."""
        own = {name: scheme for name, scheme in self.layers.items() if name.startswith(prefix)}
        return Packing(layers={name.removeprefix(prefix): scheme for name, scheme in own.items()})

    def as_json(self) -> dict[str, Any]:
        """The value of FIELD."""
        schemes = sorted(set(self.layers.values()))
        return {
            "quant_method": METHOD,
            "version": VERSION,
            "layouts": {scheme: digest_of(scheme) for scheme in schemes},
            "measured": dict(self.measured),
            "layers": dict(self.layers),
        }


def is_packed(path: Path) -> bool:
    """Whether a directory's config.json, or that beside a file, says so."""
    config = (path.parent if path.is_file() else path) / "config.json"
    return config.is_file() and _record(Fields(read_json(config), str(config))) is not None


def read_packing(fields: Fields) -> Packing | None:
    """What config.json says; None for a checkpoint that is not packed, or by somebody else's method.

    Raises:
        ConfigError: another version or layout of panels than this one, or a damaged record.
    """
    record = _record(fields)
    if record is None:
        return None
    version = record.count("version")
    if version != VERSION:
        raise ConfigError(f"{record.place} is of version {version}, read here is {VERSION}: {_remedy()}")
    names = record.inner("layers").values
    if not 0 < len(names) <= MOST:
        raise record.wrong("layers", f"an object of 1 to {MOST} layers")
    layers = {name: _scheme(record, scheme) for name, scheme in names.items()}
    layouts = record.inner("layouts")
    for scheme in sorted(set(layers.values())):
        if (found := layouts.text(scheme, "none")) != (ours := digest_of(scheme)):
            raise ConfigError(
                f"{record.place}: {scheme} was packed in panels of layout {found}, the kernels here read "
                f"{ours}: {_remedy()}"
            )
    measured = record.inner("measured")
    return Packing(layers=layers, measured={name: measured.number(name) for name in measured.values})


def _record(fields: Fields) -> Fields | None:
    if not isinstance(fields.values.get(FIELD), dict):
        return None
    record = fields.inner(FIELD)
    return record if record.values.get("quant_method") == METHOD else None


def _scheme(record: Fields, name: object) -> str:
    try:
        return known_scheme(str(name))
    except InputError as error:
        raise ConfigError(f"{record.place}: {error}") from error


def _remedy() -> str:
    return "make it again by `internvl quantize` from the checkpoint it was made from"
