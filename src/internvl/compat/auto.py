"""`from_pretrained` of the published scripts: names and options to models, tokenizers and configurations.

Knows which options change nothing here. Loading itself is `api.load`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from internvl.api.chat import ChatModel
from internvl.api.contrastive import ContrastiveModel
from internvl.api.load import load
from internvl.checkpoints.locate import resolve
from internvl.compat.chat_model import InternVLChatModel
from internvl.compat.configuration import FILES as CONFIG_FILES
from internvl.compat.configuration import Config, fetch, published_config
from internvl.compat.contrastive_model import InternVLModel
from internvl.compat.placement import DeviceMap, choose_device
from internvl.compat.tokenizer import Tokenizer
from internvl.compat.vision_model import InternVisionModel
from internvl.errors import InputError
from internvl.processing.tokenizer import load_tokenizer
from internvl.processing.tokenizer_settings import FILES as TOKENIZER_FILES
from internvl.zoo import template_of

WITHOUT_EFFECT = frozenset(
    {
        *("trust_remote_code", "low_cpu_mem_usage", "use_flash_attn", "attn_implementation"),
        *("use_safetensors", "use_fast", "resume_download", "force_download"),
    }
)
"""Options of published scripts that have no counterpart: no remote code runs, weights are always streamed."""

DOWNLOAD: Mapping[str, str] = {
    "revision": "revision",
    "cache_dir": "cache_dir",
    "local_files_only": "offline",
}


class AutoModel:
    """Any checkpoint as a model with the published calls."""

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        torch_dtype: str | torch.dtype | None = None,
        dtype: str | torch.dtype | None = None,
        load_in_8bit: bool = False,
        load_in_4bit: bool = False,
        device_map: DeviceMap = None,
        **options: Any,
    ) -> InternVLChatModel | InternVLModel | InternVisionModel:
        """Load a directory, a name of the zoo, or "owner/name" of the hub; in float32 unless told otherwise.

        `load_in_8bit` and `load_in_4bit` pack the linear layers for the CPU, which computes in float32.

        `options`: revision, cache_dir, local_files_only; those of `WITHOUT_EFFECT` are accepted.
        Raises InputError for other options, DeviceError for a `device_map` over several devices, and what
        `internvl.load` raises.
        """
        path = resolve(name_or_path, **_download_options(options))
        quantize = "int8" if load_in_8bit else "int4" if load_in_4bit else None
        model = load(
            path,
            dtype="float32" if quantize else torch_dtype or dtype or "float32",
            device=choose_device(device_map),
            quantize=quantize,
            template=template_of(name_or_path),
        )
        config = published_config(path, model.config)
        if isinstance(model, ChatModel):
            return InternVLChatModel(model, config)
        if isinstance(model, ContrastiveModel):
            return InternVLModel(model, config)
        return InternVisionModel(model, config)


AutoModelForCausalLM = AutoModel


class AutoTokenizer:
    """The tokenizer of a checkpoint with the published calls."""

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        add_bos_token: bool | None = None,
        add_eos_token: bool | None = None,
        padding_side: str | None = None,
        model_max_length: int | None = None,
        **options: Any,
    ) -> Tokenizer:
        """It behaves as the published slow tokenizers, whatever `use_fast` says. Raises TokenizerError.

        `padding_side` None is that of tokenizer_config.json, else "right".
        """
        if padding_side not in ("left", "right", None):
            raise InputError(f"padding_side must be 'left' or 'right', not {padding_side!r}")
        path = fetch(name_or_path, TOKENIZER_FILES, **_download_options(options))
        return Tokenizer(
            load_tokenizer(path if path.is_dir() else path.parent),
            name_or_path=str(name_or_path),
            add_bos_token=add_bos_token,
            add_eos_token=add_eos_token,
            padding_side=padding_side,
            model_max_length=model_max_length,
        )


class AutoConfig:
    """The configuration of a checkpoint under the published names."""

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **options: Any) -> Config:
        """Only the configuration is fetched. Raises ConfigError."""
        return published_config(fetch(name_or_path, CONFIG_FILES, **_download_options(options)))


def _download_options(options: Mapping[str, Any]) -> dict[str, Any]:
    known: Collection[str] = {*WITHOUT_EFFECT, *DOWNLOAD}
    unknown = sorted(options.keys() - known)
    if unknown:
        raise InputError(
            f"from_pretrained has no option {', '.join(unknown)}; there are {', '.join(sorted(known))}"
        )
    return {ours: options[theirs] or None for theirs, ours in DOWNLOAD.items() if theirs in options}
