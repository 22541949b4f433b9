"""From a checkpoint to one whose linear layers are packed for the CPU, measured before it is kept.

Loading with `quantize=` cannot know what a scheme costs: by then there is no plain model to compare with.
Shape letters: P vision tokens, D their width, T tokens of an answer, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from internvl.api.chat import ChatModel
from internvl.api.contrastive import ContrastiveModel
from internvl.api.load import load
from internvl.api.request import read_request
from internvl.api.vision import VisionModel
from internvl.checkpoints.load import Model
from internvl.checkpoints.pack import (
    balance,
    layers_to_balance,
    observe,
    pack_model,
    packing_rules,
    write_packed,
)
from internvl.checkpoints.packing import Packing
from internvl.checkpoints.shards import Progress, check_replaceable
from internvl.checkpoints.write import Target
from internvl.errors import CheckpointError, InputError
from internvl.processing.image import ImageSource, load_image

LEAST_COSINE = 0.999
"""Of vision tokens with the plain model's, mean over tokens."""

MOST_PICTURES = 64
QUESTION = "Describe this picture."
NEW_TOKENS = 24
"""Of the plain model's answer, along which next-token shares are compared."""

AnyModel = ChatModel | ContrastiveModel | VisionModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What packing costs, against the plain model on the same pictures.

    Cosines are of vision tokens: mean over all, and over those of the worst picture. Along the plain model's
    answers: Kullback-Leibler divergence of the next-token shares (nats a token), and how often the likeliest
    token is the same; both None for a model that does not chat.
    """

    pictures: int
    vision_cosine: float
    worst_cosine: float
    divergence: float | None = None
    agreement: float | None = None

    def as_json(self) -> dict[str, float]:
        """What was measured, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class _Seen(NamedTuple):
    """What a model makes of a picture; the last two only if it chats."""

    vision_PD: Tensor
    ids: tuple[int, ...] = ()
    shares_TV: Tensor | None = None


def quantize(
    name_or_path: str | Path,
    path: str | Path,
    scheme: str | None = "int8",
    *,
    rules: Mapping[str, str] | None = None,
    pictures: Sequence[ImageSource] = (),
    activation_aware: bool = False,
    allow_loss: bool = False,
    template: str | None = None,
    vision_path: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[Packing, Loss]:
    """Write a checkpoint whose linear layers are packed, which `load` then maps from disk without reading it.

    Needs the plain model in memory, in float32. Of every picture one tile is seen.

    Args:
        name_or_path: as of `load`.
        path: a directory; must be empty or absent unless `overwrite`.
        scheme: as `quantize` of `load`; None packs what `rules` name alone.
        rules: {pattern over names of layers: scheme}; they come before those of the scheme.
        pictures: what the loss is measured on, at most 64; by default four photos of this package.
        activation_aware: scale weights of the language model that get four bits for what they see of the
            pictures and the plain model's answers; takes longer and costs nothing later.
        allow_loss: keep a packed model whose vision tokens miss LEAST_COSINE.
        template: chat template, where the checkpoint names none.
        vision_path: the tower's checkpoint, where a LLaVA-style one does not hold it.
        overwrite: replace a directory that holds files.
        progress: called after each tensor with its name, the bytes written so far and those in total.

    Raises:
        InputError: vision tokens that miss the bound; schemes, patterns and pictures that cannot be used.
        CheckpointError: what cannot be read or written, or is packed already.
    """
    if Path(path).is_dir():  # before the minutes that measuring takes
        check_replaceable(Path(path), overwrite=overwrite)
    shown = [load_image(picture) for picture in pictures or example_pictures()]
    if len(shown) > MOST_PICTURES:
        raise InputError(f"{len(shown)} pictures are too many to measure on: give at most {MOST_PICTURES}")
    model = load(name_or_path, template=template, vision_path=vision_path)
    network = _network(model)
    chosen = packing_rules(network, scheme, rules or {})
    with observe(network) as inputs:
        scaled = layers_to_balance(network, chosen, inputs) if activation_aware else []
        seen = [_see(model, picture) for picture in shown]
    balance(network, inputs, scaled)
    packing = pack_model(network, chosen)
    loss = compare(seen, [_see(model, picture, one.ids) for picture, one in zip(shown, seen, strict=True)])
    if not allow_loss:
        check(loss, packing)
    packing = replace(packing, measured=loss.as_json())
    write_packed(network, model.config, packing, _target(model, Path(path), overwrite, progress))
    return packing, loss


def check(loss: Loss, packing: Packing) -> None:
    """Raises InputError for vision tokens that miss LEAST_COSINE, also when they are not numbers."""
    if not loss.vision_cosine >= LEAST_COSINE:
        raise InputError(
            f"packed ({packing.summary}), vision tokens have a cosine of {loss.vision_cosine:.5f} with the "
            f"plain ones over {loss.pictures} pictures, below {LEAST_COSINE}: keep the tower more exact "
            r"(rule vit\..*=bfloat16), or allow the loss (--allow-loss)"
        )


def example_pictures() -> list[bytes]:
    """The photos that come with this package."""
    folder = files("internvl") / "assets" / "pictures"
    names = sorted(one.name for one in folder.iterdir() if one.name.endswith(".jpg"))
    if not names:
        raise CheckpointError("this installation has no example pictures: name some, or install it again")
    return [(folder / name).read_bytes() for name in names]


def compare(plain: Sequence[_Seen], packed: Sequence[_Seen]) -> Loss:
    """The loss of what a packed model saw, given what the plain one did."""
    pairs = list(zip(plain, packed, strict=True))
    cosines = [torch.cosine_similarity(a.vision_PD, b.vision_PD, dim=-1) for a, b in pairs]
    spoken = [(a.shares_TV, b.shares_TV) for a, b in pairs]
    shares = [(a, b) for a, b in spoken if a is not None and b is not None]
    apart = [(a.exp() * (a - b)).sum(-1) for a, b in shares]
    same = [a.argmax(-1) == b.argmax(-1) for a, b in shares]
    return Loss(
        pictures=len(pairs),
        vision_cosine=torch.cat(cosines).mean().item(),
        worst_cosine=min(one.mean().item() for one in cosines),
        divergence=max(0.0, torch.cat(apart).mean().item()) if apart else None,  # rounding may go below
        agreement=torch.cat(same).float().mean().item() if same else None,
    )


@torch.inference_mode()
def _see(model: AnyModel, picture: ImageSource, ids: tuple[int, ...] = ()) -> _Seen:
    """Vision tokens and, along `ids` (the model's own answer if there are none), next-token shares."""
    if isinstance(model, VisionModel):
        return _Seen(model.features([picture]).last_hidden_state.flatten(0, 1))
    if isinstance(model, ContrastiveModel):
        return _Seen(model.encode_tiles(model.prepare([picture])).flatten(0, 1))
    request = read_request(QUESTION, [picture], {"max_tiles": 1}, model.processor.limits)
    inputs = model.processor(request.conversation)
    assert inputs.tiles_N3HW is not None
    vision_PD = model.encode_tiles(inputs.tiles_N3HW).flatten(0, 1)
    answer = ids or tuple(model.generate(inputs.ids, inputs.tiles_N3HW, max_new_tokens=NEW_TOKENS))
    logits_TV = model.logits([*inputs.ids, *answer[:-1]], inputs.tiles_N3HW)[-len(answer) :]
    return _Seen(vision_PD, answer, logits_TV.log_softmax(-1))


def _network(model: AnyModel) -> Model:
    if isinstance(model, VisionModel):
        return model.tower
    return model.encoder if isinstance(model, ContrastiveModel) else model.vlm


def _target(model: AnyModel, path: Path, overwrite: bool, progress: Progress | None) -> Target:
    """Where to write, with the tokenizer that was loaded."""
    if isinstance(model, VisionModel):
        pixels = model.normalization
        return Target(directory=path, normalization=pixels, overwrite=overwrite, progress=progress)
    return Target(
        directory=path,
        source=model.source if model.source is not None and model.source.is_dir() else None,
        tokenizer_files=model.processor.tokenizer.files,
        overwrite=overwrite,
        progress=progress,
    )
