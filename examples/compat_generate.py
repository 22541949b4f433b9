"""Below `chat`: a prompt written by hand, its ids, and `generate` with pixels or with ready features.

usage: python examples/compat_generate.py [MODEL]      (default: nano)
"""

import sys
from pathlib import Path

import torch

from internvl.compat import AutoModel, AutoTokenizer, load_image

path = sys.argv[1] if len(sys.argv) > 1 else "nano"
model = AutoModel.from_pretrained(path, torch_dtype=torch.float32, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True, use_fast=False)

image = Path(__file__).parent / "images" / "cat.jpg"
pixel_values = load_image(image, input_size=model.config.force_image_size, max_num=1)
picture = "<img>" + "<IMG_CONTEXT>" * model.num_image_token * len(pixel_values) + "</img>"
prompt = f"<|im_start|>user\n{picture}\nDescribe this photo.<|im_end|>\n<|im_start|>assistant\n"

model_inputs = tokenizer(prompt, return_tensors="pt")
settings = {"max_new_tokens": 32, "do_sample": False}
from_pixels = model.generate(pixel_values=pixel_values, **model_inputs, **settings)
print("Assistant:", tokenizer.batch_decode(from_pixels, skip_special_tokens=True)[0])

visual_features = model.extract_feature(pixel_values)
from_features = model.generate(visual_features=visual_features, **model_inputs, generation_config=settings)
print("the same ids from features:", torch.equal(from_pixels, from_features))

sampled = model.generate(
    pixel_values=pixel_values, **model_inputs, max_new_tokens=32, do_sample=True, top_p=0.9
)
print("sampled:", tokenizer.decode(sampled[0], skip_special_tokens=True))
