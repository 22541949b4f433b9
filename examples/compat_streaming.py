"""A published script, imports changed: the answer is written in one thread and read in another.

usage: python examples/compat_streaming.py [MODEL]      (default: nano)
"""

import sys
from pathlib import Path
from threading import Thread

import torch

from internvl.compat import AutoModel, AutoTokenizer, TextIteratorStreamer, load_image

path = sys.argv[1] if len(sys.argv) > 1 else "nano"
model = AutoModel.from_pretrained(
    path, torch_dtype=torch.float32, low_cpu_mem_usage=True, trust_remote_code=True
).eval()
tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True, use_fast=False)

image = Path(__file__).parent / "images" / "astronaut.jpg"
config = model.config
pixel_values = load_image(image, input_size=config.force_image_size, max_num=config.max_dynamic_patch)

streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=10)
generation_config = {"max_new_tokens": 64, "do_sample": False, "streamer": streamer}
thread = Thread(
    target=model.chat,
    kwargs={
        "tokenizer": tokenizer,
        "pixel_values": pixel_values,
        "question": "<image>\nPlease describe the image.",
        "history": None,
        "return_history": False,
        "generation_config": generation_config,
    },
)
thread.start()

generated_text = ""
for new_text in streamer:
    if new_text == model.conv_template.sep:
        break
    generated_text += new_text
    print(new_text, end="", flush=True)
thread.join()
print(f"\n{len(generated_text)} characters")
