"""From a packed batch to the hidden states that predict its trained tokens.

Every process calls the same submodules in the same order, whatever its batch holds: a sharded module that
one process leaves out makes the others wait for ever. So a batch without a picture runs the tower over zero
tiles, which costs nothing and gives its parameters zero gradients. Knows no loss. Shape letters: T packed
tokens, S slots, A trained tokens, N tiles, P patches, C vision width, D text width.
"""

from __future__ import annotations

from torch import Tensor

from internvl.data.batch import Batch
from internvl.models.attention import Attend, Packed
from internvl.models.vlm import VLM
from internvl.training.shared_prefix import SharedPrefix
from internvl.training.world import is_sharded


def trained_states(model: VLM, batch: Batch, vision_SD: Tensor | None = None) -> Tensor:
    """Final hidden states (A, D) at the positions that predict the trained tokens.

    Pictures come from `batch.features_NPC`, patch features of the frozen tower, else the tower runs over
    `batch.tiles_N3HW`; or from `vision_SD`, where they were encoded before. Either all processes hold
    features (perhaps of no picture) or none does.

    Raises:
        PromptError: tiles that do not fill the slots.
    """
    if vision_SD is None:
        vision_SD = vision_tokens(model, batch)
    x_TD = model.embed(batch.ids_T, batch.slots_S, vision_SD)
    if not len(vision_SD):
        x_TD = x_TD + vision_SD.sum()  # zero; keeps tower and projector in the backward pass
    hidden_TD: Tensor = model.llm(x_TD, batch.pos_T, attention(batch))
    # Branches share the last position of their prefix. Plain indexing would add their gradients in an order
    # that changes from run to run on a CPU.
    return hidden_TD.index_select(0, batch.sources_A)


def vision_tokens(model: VLM, batch: Batch) -> Tensor:
    """Vision tokens of all pictures of the batch in order, (S, D)."""
    if batch.features_NPC is not None:
        features_NPC = batch.features_NPC.to(model.vit.embed.position.dtype)
        projected_NPD: Tensor = model.projector(features_NPC)
        return projected_NPD.flatten(0, 1)
    tiles_N3HW = batch.tiles_N3HW
    at_once = max(1, len(tiles_N3HW)) if is_sharded(model) else None
    return model.encode_tiles(tiles_N3HW, at_once).flatten(0, 1)


def attention(batch: Batch) -> Attend:
    """Who sees whom: branches see their prefix and themselves. Accelerators have a fused kernel for plain
    sequences."""
    device = batch.ids_T.device
    if device.type != "cpu" and all(len(branches) == 1 for _, branches in batch.groups):
        return Packed([common + branches[0] for common, branches in batch.groups], device)
    return SharedPrefix(batch.groups, device)
