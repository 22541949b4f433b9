"""Print an answer while it is being written.

usage: python examples/chat_streaming.py [MODEL] [PICTURE]      (default: nano, the astronaut)
"""

import sys
from pathlib import Path

import internvl

model = internvl.load(sys.argv[1] if len(sys.argv) > 1 else "nano")
picture = sys.argv[2] if len(sys.argv) > 2 else Path(__file__).parent / "images" / "astronaut.jpg"

stream = model.stream("Describe this photo.", images=picture, max_new_tokens=64)
for piece in stream:
    print(piece, end="", flush=True)
print()

reply = stream.reply
print(f"first word after {stream.first_token_seconds:.1f} s, ended by: {reply.finish_reason}")
