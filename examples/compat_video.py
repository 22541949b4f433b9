"""A published script, imports changed: a video in two rounds. Without a video, a short GIF is made first.

usage: python examples/compat_video.py [MODEL] [VIDEO]      (default: nano, a GIF)
"""

import sys
from pathlib import Path

import torch
from PIL import Image

from internvl.compat import AutoModel, AutoTokenizer, load_video


def make_gif(path: Path) -> Path:
    """Two seconds, ten frames a second: the camera moves from left to right."""
    photo = Image.open(Path(__file__).parent / "images" / "rocket.jpg")
    frames = [photo.crop((10 * k, 0, 10 * k + 427, 427)).resize((224, 224)) for k in range(20)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    return path


path = sys.argv[1] if len(sys.argv) > 1 else "nano"
model = AutoModel.from_pretrained(
    path, torch_dtype=torch.float32, low_cpu_mem_usage=True, trust_remote_code=True
).eval()
tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True, use_fast=False)
generation_config = {"max_new_tokens": 64, "do_sample": False}

video_path = sys.argv[2] if len(sys.argv) > 2 else make_gif(Path("example.gif"))
pixel_values, num_patches_list = load_video(
    video_path, input_size=model.config.force_image_size, num_segments=8, max_num=1
)
video_prefix = "".join(f"Frame-{i + 1}: <image>\n" for i in range(len(num_patches_list)))
history = None
for question in (f"{video_prefix}What happens in this video?", "Describe this video in detail."):
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
