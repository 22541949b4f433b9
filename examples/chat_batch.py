"""Answer several questions together, with none, one or two pictures each.

usage: python examples/chat_batch.py [MODEL]      (default: nano)
"""

import sys
from pathlib import Path

import internvl

model = internvl.load(sys.argv[1] if len(sys.argv) > 1 else "nano")
images = Path(__file__).parent / "images"

requests = [
    {"prompt": "What is a photograph?", "max_new_tokens": 32},
    {"prompt": "Describe this photo.", "images": images / "rocket.jpg", "max_new_tokens": 32},
    {
        "prompt": "First <image>, then <image>. Which one shows an animal?",
        "images": [images / "coffee.jpg", images / "cat.jpg"],
        "max_new_tokens": 32,
    },
]
# Every answer is the one that the request would get alone.
for request, reply in zip(requests, model.chat_batch(requests), strict=True):
    print("User:", request["prompt"])
    print("Assistant:", reply.text)
