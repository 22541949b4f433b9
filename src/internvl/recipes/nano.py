"""How the projector of the default model was trained.

    python -m internvl.recipes.nano CHECKPOINT DATA OUT

CHECKPOINT is the directory of `internvl pull nano` (its projector is not used, only its tower and language
model); DATA a folder with train.jsonl, val.jsonl and pictures (`internvl.data.records` says the form), for
the shipped weights Flickr8k's standard split at 224 px, 6,000 and 1,000 pictures with five captions each.
Cost and result of the shipped run: docs/model-cards/nano.md.
"""

from __future__ import annotations

from pathlib import Path

from internvl.data.caption_set import Questions
from internvl.training.captioning import CaptionRecipe, run_captioning
from internvl.training.recipe import AdamW, Recipe

CAPTION = "Provide a one-sentence caption for the provided image."
OTHERS = (
    "Describe this photo.",
    "Describe this image in one sentence.",
    "What is in this picture?",
    "What do you see in this image?",
    "Please describe the image shortly.",
)


def nano() -> CaptionRecipe:
    """Projector only: 1,600 steps of 4 pictures with 5 captions each, a little over one epoch."""
    return CaptionRecipe(
        run=Recipe(
            name="nano",
            params=((r"projector\..*", AdamW(lr=2e-3, betas=(0.9, 0.98))), (".*", None)),
            steps=1600,
            batch_size=4,
            warmup=100,
            eval_every=250,
            save_every=100,
        ),
        questions=Questions(main=CAPTION, others=OTHERS),
    )


def main(checkpoint: Path, data: Path, out: Path) -> None:
    """Runs the recipe; called again, it continues."""
    run_captioning(nano(), checkpoint, data, out)


if __name__ == "__main__":
    import tyro

    tyro.cli(main, config=(tyro.conf.Positional,))
