"""A published script, imports changed: features of one picture from an InternViT tower.

usage: python examples/compat_vision_features.py [MODEL]      (default: the tower of nano)
"""

import sys
from pathlib import Path

import torch
from PIL import Image

from internvl.compat import AutoModel, CLIPImageProcessor

path = sys.argv[1] if len(sys.argv) > 1 else "nano"
model = AutoModel.from_pretrained(
    path, torch_dtype=torch.float32, low_cpu_mem_usage=True, trust_remote_code=True
).eval()
# A chat model holds its tower; InternViT-300M-448px-V2_5 and its kin are one.
model = getattr(model, "vision_model", model)

image = Image.open(Path(__file__).parent / "images" / "coffee.jpg").convert("RGB")
image_processor = CLIPImageProcessor.from_pretrained(path)
pixel_values = image_processor(images=image, return_tensors="pt").pixel_values
print("picture:", tuple(pixel_values.shape))

with torch.no_grad():
    outputs = model(pixel_values, output_hidden_states=True)
print("all tokens:", tuple(outputs.last_hidden_state.shape))
print("class token:", tuple(outputs.pooler_output.shape))
print("hidden states:", len(outputs.hidden_states))
