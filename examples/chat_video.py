"""Ask about a video. Without one, a short GIF that moves over a photo is made first.

usage: python examples/chat_video.py [MODEL] [VIDEO]      (default: nano, a GIF)
"""

import sys
from pathlib import Path

from PIL import Image

import internvl


def make_gif(path: Path) -> Path:
    """Two seconds, ten frames a second: the camera moves from left to right."""
    photo = Image.open(Path(__file__).parent / "images" / "rocket.jpg")
    frames = [photo.crop((10 * k, 0, 10 * k + 427, 427)).resize((224, 224)) for k in range(20)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    return path


model = internvl.load(sys.argv[1] if len(sys.argv) > 1 else "nano")
video = sys.argv[2] if len(sys.argv) > 2 else make_gif(Path("example.gif"))

# Eight frames, evenly spread, announced to the model as Frame-1, Frame-2 and so on.
reply = model.chat("What happens in this video?", videos=[video], num_segments=8, max_new_tokens=64)
print("Assistant:", reply.text)
reply = model.chat("Describe it in detail.", history=reply.history, max_new_tokens=64)
print("Assistant:", reply.text)

# A part of it: two frames a second between 0.5 s and 1.5 s.
reply = model.chat("And here?", videos=[video], fps=2, bound=(0.5, 1.5), max_new_tokens=64)
print(f"Assistant, from {reply.usage.tiles} frames:", reply.text)
