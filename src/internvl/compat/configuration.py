"""Configuration under the published names: `config.vision_config.image_size`, `config.template`.

A view: the model does not listen to it. Knows which files describe a checkpoint, not what its weights are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from internvl.checkpoints.chat_config import write_chat
from internvl.checkpoints.configs import Description, describe
from internvl.checkpoints.contrastive_config import write_contrastive
from internvl.checkpoints.hub import pull
from internvl.checkpoints.locate import resolve
from internvl.checkpoints.text_config import guess_family
from internvl.checkpoints.vision_config import write_vision
from internvl.config import ChatConfig, ContrastiveConfig, VisionConfig
from internvl.errors import HubError

FILES = ("config.json", "preprocessor_config.json")


class Config:
    """The fields of a config.json as attributes, and those inside its parts. It cannot be changed."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = dict(fields)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._fields:
            raise AttributeError(f"config.json has no field {name!r}")
        value = self._fields[name]
        return Config(value) if isinstance(value, Mapping) else value

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __repr__(self) -> str:
        return f"Config({self._fields})"

    def to_dict(self) -> dict[str, Any]:
        """The fields as they stand in the file."""
        return dict(self._fields)


def published_config(
    path: Path, model_config: ChatConfig | ContrastiveConfig | VisionConfig | None = None
) -> Config:
    """The official form of a checkpoint's configuration, whichever form the file has.

    `model_config` is asked where a weight file lies alone. Raises `ConfigError` without either.
    """
    folder = path if path.is_dir() else path.parent
    if not (folder / "config.json").is_file():
        if isinstance(model_config, VisionConfig):
            return Config(write_vision(model_config, {}))
        if isinstance(model_config, ContrastiveConfig):
            return Config(write_contrastive(model_config, guess_family(model_config.text), {}))
    return Config(_official(describe(path)))


def _official(description: Description) -> Mapping[str, Any]:
    raw, config, family = description.raw, description.config, description.family
    if isinstance(config, VisionConfig):
        return write_vision(config, raw)
    if isinstance(config, ChatConfig) and family and config.projector.shuffle:
        return write_chat(config, family, raw if "llm_config" in raw else {})
    if isinstance(config, ContrastiveConfig) and family:
        return write_contrastive(config, family, raw)
    return raw


def fetch(name_or_path: str | Path, files: Sequence[str], **options: Any) -> Path:
    """A directory that holds these files of a checkpoint: a path as it is, else the cache, else the hub.

    `options` are those of `hub.pull`. Where single files cannot be had, the whole checkpoint is asked for.
    Raises `HubError`, and `UnknownNameError` for no path and no model.
    """
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    for attempt in ({**options, "offline": True}, options):
        with suppress(HubError):
            return pull(str(name_or_path), allow_patterns=files, **attempt)
    return resolve(name_or_path, **options)
