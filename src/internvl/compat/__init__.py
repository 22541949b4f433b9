"""The names and calls of the family's published quick-starts: change the import lines, keep the script.

    from internvl.compat import AutoModel, AutoTokenizer, load_image, load_video

Thin by intent: everything runs through `internvl.api`, which is the better choice for new code. What the
released code gets wrong without saying so (marks and pictures that disagree, a changed settings dict, a
system message shared between threads) is refused or put right here.
"""

from internvl.compat.auto import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from internvl.compat.chat_model import InternVLChatModel
from internvl.compat.contrastive_model import InternVLModel
from internvl.compat.generation_config import GenerationConfig
from internvl.compat.image_processor import CLIPImageProcessor
from internvl.compat.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    build_transform,
    dynamic_preprocess,
    find_closest_aspect_ratio,
    load_image,
)
from internvl.compat.placement import split_model
from internvl.compat.streamer import TextIteratorStreamer
from internvl.compat.tokenizer import Tokenizer
from internvl.compat.transforms import InterpolationMode
from internvl.compat.videos import VideoReader, cpu, get_index, load_video
from internvl.compat.vision_model import InternVisionModel

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "CLIPImageProcessor",
    "GenerationConfig",
    "InternVLChatModel",
    "InternVLModel",
    "InternVisionModel",
    "InterpolationMode",
    "TextIteratorStreamer",
    "Tokenizer",
    "VideoReader",
    "build_transform",
    "cpu",
    "dynamic_preprocess",
    "find_closest_aspect_ratio",
    "get_index",
    "load_image",
    "load_video",
    "split_model",
]
