"""Features of pictures from an InternViT tower, and how alike the pictures are.

usage: python examples/vision_features.py [MODEL]      (default: the tower of nano)

MODEL may be a tower alone (InternViT-300M-448px-V2_5) or any chat model.
"""

import sys
from pathlib import Path

import torch

import internvl

model = internvl.load(sys.argv[1] if len(sys.argv) > 1 else "nano")
if isinstance(model, internvl.ChatModel):
    model = internvl.VisionModel(model.vlm.vit)

pictures = sorted((Path(__file__).parent / "images").glob("*.jpg"))
features = model.features(pictures)
print("all tokens:", tuple(features.last_hidden_state.shape))
print("class token:", tuple(features.pooled.shape))

patches = features.last_hidden_state[:, 1:].mean(dim=1)
similarity = torch.nn.functional.cosine_similarity(patches[:, None], patches[None], dim=-1)
for picture, row in zip(pictures, similarity.tolist(), strict=True):
    print(f"{picture.stem:>10}", " ".join(f"{value:5.2f}" for value in row))
