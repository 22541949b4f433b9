"""Ask about one picture, and ask again.

usage: python examples/chat_one_image.py [MODEL] [PICTURE]      (default: nano, the cat)
"""

import sys
from pathlib import Path

import internvl

model = internvl.load(sys.argv[1] if len(sys.argv) > 1 else "nano")
picture = sys.argv[2] if len(sys.argv) > 2 else Path(__file__).parent / "images" / "cat.jpg"

reply = model.chat("Describe this photo.", images=picture, max_new_tokens=64)
print("Assistant:", reply.text)

# The history holds the picture; its vision tokens are not computed again.
reply = model.chat("What colour is it?", history=reply.history, max_new_tokens=64)
print("Assistant:", reply.text)

usage = reply.usage
print(f"{usage.tiles} tiles, {usage.vision_tokens} vision tokens, {usage.new_tokens} new tokens")
