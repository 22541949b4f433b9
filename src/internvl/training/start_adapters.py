"""The adapters that a run starts with: new ones, or those of a run before.

Knows models and PEFT's directories; not what is trained of them.
"""

from __future__ import annotations

import torch

from internvl.adapt.lora import LoRA, adapters, add_adapters
from internvl.adapt.targets import choose
from internvl.checkpoints.adapters import Loaded, load_adapters
from internvl.errors import TrainingError
from internvl.models.dual_encoder import DualEncoder
from internvl.models.vlm import VLM
from internvl.training.recipe import ModelSpec


def start_adapters(model: VLM | DualEncoder, spec: ModelSpec, seed: int) -> Loaded:
    """Puts the adapters of the recipe on a model; tells the modules that have one now, and the parameters
    that came with those of a run before.

    New ones depend on `seed` alone. Raises TrainingError where those of a run before are not of the kind that
    the recipe says, and what reading them raises.
    """
    if spec.adapter is None:
        generator = torch.Generator().manual_seed(seed)
        return Loaded(tuple(add_adapters(model, spec.adapters, generator)) if spec.adapters else (), ())
    wanted = {name: _told(lora) for name, lora in choose(model, spec.adapters).items()}
    replaced = load_adapters(model, spec.adapter).replaced
    found = {name: _told(module.lora) for name, module in adapters(model).items()}
    differing = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    if differing:
        name = differing[0]
        raise TrainingError(
            f"the adapters in {spec.adapter} differ from model.adapters in {len(differing)} modules: {name} "
            f"has {found.get(name)}, the recipe says {wanted.get(name)}"
        )
    return Loaded(tuple(found), replaced)


def _told(lora: LoRA) -> str:
    """What is learnt of an adapter, whichever way it was written down."""
    kind = "DoRA" if lora.magnitude else "LoRA"
    return f"{kind} of rank {lora.rank}, scale {lora.scale:g}, dropout {lora.dropout:g}"
