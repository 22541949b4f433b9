"""Our linear modules under the names of a base model in some layout.

Knows rules and rows; adapters and their files are read and written in `checkpoints.adapters`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from internvl.checkpoints.layouts import FAMILIES, HF_UNPREFIXED, family_called
from internvl.checkpoints.lazy import Held, Lazy, fetch
from internvl.checkpoints.load import Model
from internvl.checkpoints.rules import Heads, Rule, convert, strictly
from internvl.checkpoints.text_config import guess_family
from internvl.checkpoints.write import CHAT_LAYOUTS, CONTRASTIVE_LAYOUTS, VISION_LAYOUTS
from internvl.errors import UnknownNameError
from internvl.models.dual_encoder import DualEncoder
from internvl.models.vit import VisionTower
from internvl.models.vlm import VLM


@dataclass(frozen=True, slots=True)
class Naming:
    """Our names in a layout, and the rows of our matrices among its matrices."""

    rules: Sequence[Rule]
    heads: Heads

    def split(self, name: str, rows: Tensor) -> Mapping[str, Lazy]:
        """Our rows as the layout keeps them: by its names, in our order of the fused parts."""
        return strictly(convert({name: Held(rows, name)}, self.rules, self.heads, back=True))

    def join(self, rows: Mapping[str, Lazy]) -> dict[str, Tensor]:
        """The inverse of `split`, for any number of our tensors.

        Raises:
            WeightsError: a name that the layout does not have.
        """
        joined = strictly(convert(rows, self.rules, self.heads))
        return {name: fetch(value) for name, value in joined.items()}


def namings(model: Model) -> list[Naming]:
    """All that may be behind the names in a file."""
    if isinstance(model, VisionTower):
        return [Naming(layout.rules(None), Heads(1, 1)) for layout in VISION_LAYOUTS.values()]
    packings = {family.body: family for family in reversed(FAMILIES)}
    layouts = [*CHAT_LAYOUTS.values(), HF_UNPREFIXED]
    if isinstance(model, DualEncoder):
        layouts = list(CONTRASTIVE_LAYOUTS.values())
    heads = _heads(model)
    return [Naming(layout.rules(family), heads) for layout in layouts for family in packings.values()]


def find_naming(model: Model, layout: str, family: str | None) -> Naming:
    """The naming of a layout; `family` None is what the configuration implies.

    Raises:
        UnknownNameError: no such layout or family.
    """
    layouts = CHAT_LAYOUTS if isinstance(model, VLM) else VISION_LAYOUTS
    layouts = CONTRASTIVE_LAYOUTS if isinstance(model, DualEncoder) else layouts
    if layout not in layouts:
        raise UnknownNameError(f"no layout {layout!r} for adapters; there are {', '.join(layouts)}")
    if isinstance(model, VisionTower):
        return Naming(layouts[layout].rules(None), Heads(1, 1))
    packing = family_called(family) if family else guess_family(model.config.text)
    if layout == "hf" and packing.name == "internlm2":
        packing = family_called("llama")
    return Naming(layouts[layout].rules(packing), _heads(model))


def _heads(model: VLM | DualEncoder) -> Heads:
    return Heads(model.config.text.num_heads, model.config.text.num_kv_heads)
