"""A published script, imports changed: InternVL-C and -G compare pictures with texts; one gets a caption.

usage: python examples/compat_contrastive.py [MODEL]      (default: nano-c)
"""

import sys
from pathlib import Path

import torch
from PIL import Image

from internvl.compat import AutoModel, AutoTokenizer, CLIPImageProcessor

path = sys.argv[1] if len(sys.argv) > 1 else "nano-c"
model = AutoModel.from_pretrained(
    path, torch_dtype=torch.float32, low_cpu_mem_usage=True, trust_remote_code=True
).eval()
image_processor = CLIPImageProcessor.from_pretrained(path)
tokenizer = AutoTokenizer.from_pretrained(path, use_fast=False, add_eos_token=True)
tokenizer.pad_token_id = 0  # set pad_token_id to 0

folder = Path(__file__).parent / "images"
images = [Image.open(folder / name).convert("RGB") for name in ("astronaut.jpg", "cat.jpg", "coffee.jpg")]
prefix = "summarize:"
texts = [prefix + "a photo of an astronaut", prefix + "a cat", prefix + "一杯咖啡"]

pixel_values = image_processor(images=images, return_tensors="pt").pixel_values
input_ids = tokenizer(
    texts, return_tensors="pt", max_length=80, truncation=True, padding="max_length"
).input_ids

with torch.no_grad():
    for mode in ("InternVL-C", "InternVL-G"):
        logits_per_image, logits_per_text = model(image=pixel_values, text=input_ids, mode=mode)
        print(mode, logits_per_image.softmax(dim=-1))

# please set add_eos_token to False for generation
tokenizer.add_eos_token = False
tokenized = tokenizer("English caption:", return_tensors="pt")
pred = model.generate(
    pixel_values=pixel_values[1:2],
    input_ids=tokenized.input_ids,
    attention_mask=tokenized.attention_mask,
    num_beams=5,
    min_new_tokens=8,
)
print("Caption:", tokenizer.decode(pred[0].cpu(), skip_special_tokens=True).strip())
