"""A published script, imports changed: several questions together, each about its own picture.

usage: python examples/compat_batch.py [MODEL]      (default: nano)
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
generation_config = {"max_new_tokens": 32, "do_sample": False}

images = Path(__file__).parent / "images"
size, most = model.config.force_image_size, model.config.max_dynamic_patch
parts = [load_image(images / name, input_size=size, max_num=most) for name in ("cat.jpg", "rocket.jpg")]
pixel_values = torch.cat(parts, dim=0)
num_patches_list = [len(part) for part in parts]

questions = ["<image>\nDescribe the image in detail."] * len(parts)
responses = model.batch_chat(
    tokenizer,
    pixel_values,
    num_patches_list=num_patches_list,
    questions=questions,
    generation_config=generation_config,
)
for question, response in zip(questions, responses, strict=True):
    print(f"User: {question}\nAssistant: {response}")

# More than the published code can do: no picture, or several, in one batch.
questions = ["What is a photograph?", "<image> and <image>: which one shows an animal?"]
responses = model.batch_chat(
    tokenizer, pixel_values, questions, generation_config, num_patches_list=[[], num_patches_list]
)
for question, response in zip(questions, responses, strict=True):
    print(f"User: {question}\nAssistant: {response}")
