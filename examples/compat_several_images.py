"""A published script, imports changed: two pictures, combined under one mark and separate.

usage: python examples/compat_several_images.py [MODEL]      (default: nano)
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

images = Path(__file__).parent / "images"
size, most = model.config.force_image_size, model.config.max_dynamic_patch
pixel_values1 = load_image(images / "cat.jpg", input_size=size, max_num=most)
pixel_values2 = load_image(images / "coffee.jpg", input_size=size, max_num=most)
pixel_values = torch.cat((pixel_values1, pixel_values2), dim=0)
num_patches_list = [pixel_values1.size(0), pixel_values2.size(0)]

print("-- combined")
history = None
for question in ("<image>\nDescribe the two images in detail.", "What do they have in common?"):
    response, history = model.chat(
        tokenizer, pixel_values, question, generation_config, history=history, return_history=True
    )
    print(f"User: {question}\nAssistant: {response}")

print("-- separate")
history = None
for question in (
    "Image-1: <image>\nImage-2: <image>\nDescribe the two images in detail.",
    "What do they have in common?",
):
    response, history = model.chat(
        tokenizer,
        pixel_values,
        question,
        generation_config,
        num_patches_list=num_patches_list,
        history=history,
        return_history=True,
    )
    print(f"User: {question}\nAssistant: {response}")
