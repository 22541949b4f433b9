"""InternVL: load any checkpoint of the family and talk about pictures.

Names are imported when they are first used, so that `import internvl` needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from internvl.api.chat import ChatModel
    from internvl.api.contrastive import ContrastiveModel
    from internvl.api.load import load, save
    from internvl.api.pipeline import GenerationConfig, pipeline
    from internvl.api.reply import Reply
    from internvl.api.vision import VisionModel
    from internvl.errors import InternVLError

__version__ = "0.1.0"
__all__ = [
    "ChatModel",
    "ContrastiveModel",
    "GenerationConfig",
    "InternVLError",
    "Reply",
    "VisionModel",
    "__version__",
    "load",
    "pipeline",
    "save",
]

_HOMES: Mapping[str, str] = {
    "ChatModel": "internvl.api.chat",
    "ContrastiveModel": "internvl.api.contrastive",
    "GenerationConfig": "internvl.api.pipeline",
    "InternVLError": "internvl.errors",
    "Reply": "internvl.api.reply",
    "VisionModel": "internvl.api.vision",
    "load": "internvl.api.load",
    "pipeline": "internvl.api.pipeline",
    "save": "internvl.api.load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'internvl' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
