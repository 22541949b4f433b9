"""What each number format costs in accuracy, on real photos with `nano` and `nano-c`.

    scripts/bench quantised_accuracy DATA [--photos 100]

DATA holds `flickr8k/` (val.jsonl and pictures). For `nano`, against the same model as it was loaded: cosine
of the vision tokens (mean over tokens, and over those of the worst photo), Kullback-Leibler divergence of the
next-token distributions along the plain model's captions (mean, nats), share of captions whose greedy ids are
all equal, share of equal ids when the plain caption is followed, and CIDEr-D. For `nano-c`: how often a photo
finds its own first caption among those of all chosen photos (R@1, R@5), and the cosine of pictures' vectors.
"int4 aware" is four bits with activation-aware scaling on the package's own pictures, which are not scored.
Prints one JSON line per format.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

import internvl
from internvl.api.chat import ChatModel
from internvl.api.contrastive import ContrastiveModel
from internvl.api.packing import quantize
from internvl.api.request import read_request
from internvl.evaluation.scores import CiderD
from internvl.ops.packed import SCHEMES

PROMPT = "Provide a one-sentence caption for the provided image."
AWARE = "int4 aware"


class Side:
    """`nano` in one format, and what it makes of photos."""

    def __init__(self, scheme: str | None) -> None:
        model = load_aware() if scheme == AWARE else internvl.load("nano", quantize=scheme)
        assert isinstance(model, ChatModel)
        self.model = model

    def see(self, photo: Path) -> Tensor:
        return self.model.encode_tiles(self._inputs(photo)[1])[0]

    def say(self, photo: Path) -> tuple[str, tuple[int, ...]]:
        ids = tuple(self.model.generate(*self._inputs(photo), max_new_tokens=30))
        return self.model.chat(PROMPT, images=[photo], max_new_tokens=30).text, ids

    def shares(self, photo: Path, ids: tuple[int, ...]) -> Tensor:
        """Log-probabilities (len(ids), V) of what follows the prompt and each of `ids`."""
        prompt, tiles_N3HW = self._inputs(photo)
        logits_TV = self.model.logits([*prompt, *ids[:-1]], tiles_N3HW)
        return logits_TV[-len(ids) :].log_softmax(-1)

    def _inputs(self, photo: Path) -> tuple[list[int], Tensor]:
        request = read_request(PROMPT, [photo], {}, self.model.processor.limits)
        inputs = self.model.processor(request.conversation)
        assert inputs.tiles_N3HW is not None
        return inputs.ids, inputs.tiles_N3HW


def load_aware() -> object:
    with TemporaryDirectory() as folder:  # what is mapped from a file outlives its name
        quantize("nano", Path(folder) / "copy", "int4", activation_aware=True, allow_loss=True)
        return internvl.load(Path(folder) / "copy")


def compare_chat(photos: Sequence[Path], rows: Sequence[dict[str, Any]], measure: CiderD) -> None:
    plain = Side(None)
    seen = [plain.see(photo) for photo in photos]
    said = [plain.say(photo) for photo in photos]
    shares = [plain.shares(photo, ids) for photo, (_, ids) in zip(photos, said, strict=True)]

    def cider(answers: Sequence[tuple[str, tuple[int, ...]]]) -> float:
        scores = [measure(text, row["en"]) for (text, _), row in zip(answers, rows, strict=True)]
        return sum(scores) / len(scores)

    show({"scheme": "plain", "photos": len(photos), "cider": cider(said)})
    for scheme in (*SCHEMES, AWARE):
        side = Side(scheme)
        cosines = [torch.cosine_similarity(side.see(p), a, dim=-1) for p, a in zip(photos, seen, strict=True)]
        answers = [side.say(photo) for photo in photos]
        ours = [side.shares(photo, ids) for photo, (_, ids) in zip(photos, said, strict=True)]
        apart = [(a.exp() * (a - b)).sum(-1) for a, b in zip(shares, ours, strict=True)]
        same = [a.argmax(-1) == b.argmax(-1) for a, b in zip(shares, ours, strict=True)]
        show(
            {
                "scheme": scheme,
                "cosine": torch.cat(cosines).mean().item(),
                "cosine of the worst photo": min(one.mean().item() for one in cosines),
                "divergence": torch.cat(apart).mean().item(),
                "equal captions": sum(a[1] == b[1] for a, b in zip(answers, said, strict=True)) / len(said),
                "equal next ids": torch.cat(same).float().mean().item(),
                "cider": cider(answers),
            }
        )


def compare_search(photos: Sequence[Path], captions: Sequence[str]) -> None:
    plain_BE: Tensor | None = None
    for scheme in (None, *SCHEMES):
        model = internvl.load("nano-c", quantize=scheme)
        assert isinstance(model, ContrastiveModel)
        images_BE, texts_BE = model.embed_images(photos), model.embed_texts(captions)
        plain_BE = images_BE if plain_BE is None else plain_BE
        ranks_B = (images_BE @ texts_BE.T).argsort(1, descending=True).argsort(1).diagonal()
        show(
            {
                "model": "nano-c",
                "scheme": scheme or "plain",
                "cosine": torch.cosine_similarity(images_BE, plain_BE).mean().item(),
                "R@1": (ranks_B < 1).float().mean().item(),
                "R@5": (ranks_B < 5).float().mean().item(),
            }
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--photos", type=int, default=100)
    options = parser.parse_args()
    folder = options.data / "flickr8k"
    rows = [json.loads(line) for line in (folder / "val.jsonl").open(encoding="utf-8")]
    measure = CiderD([tuple(row["en"]) for row in rows])
    rows = rows[:: len(rows) // options.photos][: options.photos]
    photos = [folder / row["image"] for row in rows]
    with torch.inference_mode():
        compare_chat(photos, rows, measure)
        compare_search(photos, [row["en"][0] for row in rows])


def show(row: dict[str, Any]) -> None:
    rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}
    sys.stdout.write(json.dumps(rounded) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
