"""A published script, imports changed: one picture, one question and a conversation.

usage: python examples/compat_one_image.py [MODEL]      (default: nano)
"""

import sys
from pathlib import Path

import torch

from internvl.compat import AutoModel, AutoTokenizer, load_image

path = sys.argv[1] if len(sys.argv) > 1 else "nano"
model = AutoModel.from_pretrained(
    path, torch_dtype=torch.float32, low_cpu_mem_usage=True, trust_remote_code=True
).eval()
tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True, use_fast=False)
generation_config = {"max_new_tokens": 64, "do_sample": False}

image = Path(__file__).parent / "images" / "cat.jpg"
config = model.config
pixel_values = load_image(image, input_size=config.force_image_size, max_num=config.max_dynamic_patch)

question = "<image>\nPlease describe the image shortly."
response = model.chat(tokenizer, pixel_values, question, generation_config)
print(f"User: {question}\nAssistant: {response}")

question = "<image>\nPlease describe the image in detail."
response, history = model.chat(tokenizer, pixel_values, question, generation_config, return_history=True)
print(f"User: {question}\nAssistant: {response}")

question = "Please write a poem according to the image."
response, history = model.chat(
    tokenizer, pixel_values, question, generation_config, history=history, return_history=True
)
print(f"User: {question}\nAssistant: {response}")
print(f"{len(pixel_values)} tiles, {len(history)} rounds")
