"""The words that say how large an engine is and what it does, for commands that answer many requests.

Flags that mean what vLLM's or LMDeploy's mean have their names too. Knows no models.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import UseAppendAction, arg

from internvl.cli.machine import free_memory
from internvl.errors import InputError

if TYPE_CHECKING:
    from internvl.engine.settings import EngineSettings

NUM_BESIDE = 256
"""Requests that may wait beside those with a connection of their own: rows of batches, further prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How many answers are computed at once, and with what memory."""

    max_model_len: Annotated[
        int | None, arg(metavar="N", aliases=["--session-len"], help_behavior_hint="")
    ] = None
    """Most tokens of prompt and answer together; the model's own number by default."""
    max_num_seqs: Annotated[int, arg(metavar="N", aliases=["--max-batch-size"])] = 8
    """Answers that are computed at once."""
    max_num_batched_tokens: Annotated[int, arg(metavar="N", aliases=["--max-prefill-token-num"])] = 512
    """Tokens of a step: with more, long prompts are read sooner, and others wait longer for a token."""
    kv_cache_memory_bytes: Annotated[int, arg(metavar="N", aliases=["--kv-cache-bytes"])] = 2**30
    """Memory for keys and values."""
    cache_max_entry_count: Annotated[float | None, arg(metavar="X", help_behavior_hint="")] = None
    """The same as a part of the memory that is free once the model is loaded, such as 0.5."""
    kv_cache_dtype: Literal["auto", "int8"] = "auto"
    """auto: as the weights are computed; int8: a quarter of float32, and answers may change a little."""
    enable_prefix_caching: bool = True
    """Compute what prompts begin with alike only once."""
    num_speculative_tokens: Annotated[int, arg(metavar="N", aliases=["--num-drafts"])] = 0
    """Tokens guessed ahead from what the text repeats; answers stay the same."""
    vision_cache_path: Annotated[str | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Where vision tokens of pictures are kept for the next start; in memory only by default."""

    lora_modules: Annotated[
        UseAppendAction[tuple[str, ...]], arg(metavar="NAME=FOLDER", help_behavior_hint="")
    ] = ()
    """Adapter in PEFT's format that requests name as a model; may be repeated."""

    def check(self) -> None:
        """Raises InputError for what cannot be; before a model is loaded."""
        at_least = {
            "max_num_seqs": 1, "max_num_batched_tokens": 1, "kv_cache_memory_bytes": 1,
            "num_speculative_tokens": 0, "max_model_len": 2,
        }  # fmt: skip
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise InputError(
                f"--max-num-batched-tokens {self.max_num_batched_tokens} is less than --max-num-seqs "
                f"{self.max_num_seqs}: every running answer needs a token of each step"
            )
        if self.cache_max_entry_count is not None and not 0 < self.cache_max_entry_count < 1:
            raise InputError(
                f"--cache-max-entry-count is a part between 0 and 1, got {self.cache_max_entry_count}"
            )
        for word in self.lora_modules:
            name, _, folder = word.partition("=")
            if not (name and folder and Path(folder).is_dir()):
                raise InputError(f"--lora-modules takes NAME=FOLDER of a folder that is there, got {word!r}")

    @property
    def adapters(self) -> tuple[tuple[str, Path], ...]:
        """Names and folders of adapters."""
        words = [word.partition("=") for word in self.lora_modules]
        return tuple((name, Path(folder)) for name, _, folder in words)

    def settings(self, device: str, num_queued: int = 0) -> EngineSettings:
        """As the engine has it. Call it when the model is loaded: free memory is measured."""
        from internvl.engine.settings import EngineSettings

        part = self.cache_max_entry_count
        return EngineSettings(
            cache_bytes=self.kv_cache_memory_bytes if part is None else int(part * free_memory(device)),
            max_running=self.max_num_seqs,
            max_step_tokens=self.max_num_batched_tokens,
            max_model_len=self.max_model_len,
            max_waiting=num_queued + NUM_BESIDE,
            shares_prefixes=self.enable_prefix_caching,
            num_drafts=self.num_speculative_tokens,
            kv_format="int8" if self.kv_cache_dtype == "int8" else "model",
            vision_directory=self.vision_cache_path,
        )


def served_name(model: str) -> str:
    """What requests call a model by a name or a path; `.` has the name of its folder."""
    name = Path(model).name
    return name if name not in ("", "..") else Path(model).resolve().name
