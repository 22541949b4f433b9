"""Compare pictures with texts of two languages, as InternVL-C and as InternVL-G; then write captions.

usage: python examples/contrastive.py [MODEL]      (default: nano-c)
"""

import sys
from pathlib import Path

import internvl

model = internvl.load(sys.argv[1] if len(sys.argv) > 1 else "nano-c")
pictures = sorted((Path(__file__).parent / "images").glob("*.jpg"))
texts = ["an astronaut", "a photo of a cat", "一杯咖啡", "a rocket on its launch pad"]

for mode in ("C", "G"):
    print(f"InternVL-{mode}: how the texts share each picture")
    shares = model.logits(pictures, texts, mode).softmax(dim=-1)
    for picture, row in zip(pictures, shares.tolist(), strict=True):
        print(f"{picture.stem:>10}", " ".join(f"{share:5.2f}" for share in row))

# Vectors to keep: unit length, so that their products are cosines.
vectors = model.embed_images(pictures, mode="G", normalize=True)
print("vectors:", tuple(vectors.shape))

# Each picture together with one text: slower, and surer with a model that has learnt it (nano-c has not).
for picture, share in zip(pictures, model.match(pictures, texts).tolist(), strict=True):
    print(f"{picture.stem:>10} belongs to its text with probability {share:.2f}")

for picture, caption in zip(pictures, model.caption(pictures), strict=True):
    print(f"{picture.stem:>10}: {caption}")
