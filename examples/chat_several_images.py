"""Compare two pictures, each under its own mark; then both joined under one mark.

usage: python examples/chat_several_images.py [MODEL]      (default: nano)
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

import internvl
from internvl.processing.image import load_image
from internvl.processing.tiles import prepare

model = internvl.load(sys.argv[1] if len(sys.argv) > 1 else "nano")
images = Path(__file__).parent / "images"
pictures = [images / "cat.jpg", images / "coffee.jpg"]

# Separate pictures: `<image>` says where each one goes.
reply = model.chat(
    "Image-1: <image>\nImage-2: <image>\nWhat do the two pictures show?",
    images=pictures,
    max_new_tokens=64,
)
print("Separate:", reply.text)
reply = model.chat("What do they have in common?", history=reply.history, max_new_tokens=64)
print("Separate:", reply.text)

# Combined: the tiles of both pictures are one picture to the model.
first, second = (prepare(load_image(picture), model.config.tiling) for picture in pictures)
combined = replace(
    first, tiles_N3HW=torch.cat((first.tiles_N3HW, second.tiles_N3HW)), key=first.key + second.key
)
reply = model.chat("<image>\nDescribe the pictures.", images=combined, max_new_tokens=64)
print("Combined:", reply.text)
reply = model.chat("What do they have in common?", history=reply.history, max_new_tokens=64)
print("Combined:", reply.text)
