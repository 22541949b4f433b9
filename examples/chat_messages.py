"""Messages of roles and contents, as the OpenAI protocol writes them, and a look at what the model will read.

usage: python examples/chat_messages.py [MODEL]      (default: nano)
"""

import sys
from pathlib import Path

import internvl

model = internvl.load(sys.argv[1] if len(sys.argv) > 1 else "nano")
images = Path(__file__).parent / "images"

messages = [
    {"role": "system", "content": "You answer in one sentence."},
    {
        "role": "user",
        "content": [
            {"type": "image", "image": images / "coffee.jpg", "max_tiles": 4},
            {"type": "image_url", "image_url": {"url": str(images / "cat.jpg"), "detail": "low"}},
            {"type": "text", "text": "Who would drink this?"},
        ],
    },
]

# Nothing runs here: pictures are read and counted.
plan = model.explain(messages)
for picture in plan.pictures:
    print(
        f"{picture.size}: {picture.grid.columns} x {picture.grid.rows} tiles, {picture.vision_tokens} tokens"
    )
print(f"{plan.num_tokens} tokens in all, {plan.cache_bytes / 1e6:.1f} MB of keys and values")

print("Assistant:", model.chat(messages, max_new_tokens=64).text)
