"""Ask where something is, and draw the boxes of the answer onto the picture.

usage: python examples/grounding.py [MODEL] [PICTURE] [WHAT]      (default: nano, the cat, its face)

The published InternVL models answer with boxes; nano was not trained to.
"""

import sys
from pathlib import Path

import internvl
from internvl.processing.grounding import draw_boxes
from internvl.processing.image import load_image

model = internvl.load(sys.argv[1] if len(sys.argv) > 1 else "nano")
picture = load_image(sys.argv[2] if len(sys.argv) > 2 else Path(__file__).parent / "images" / "cat.jpg")
what = sys.argv[3] if len(sys.argv) > 3 else "the cat's face"

question = "Please provide the bounding box coordinate of the region this sentence describes: "
reply = model.chat(f"{question}<ref>{what}</ref>", images=picture, max_new_tokens=64)
print("Assistant:", reply.marked_text)

for box in reply.boxes:
    print(f"{box.label}: {box.x1:.0f}, {box.y1:.0f} to {box.x2:.0f}, {box.y2:.0f} pixels")
draw_boxes(picture, reply.boxes).save("boxes.png")
print(f"{len(reply.boxes)} boxes drawn into boxes.png")
