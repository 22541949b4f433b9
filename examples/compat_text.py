"""A published script, imports changed: text only, one question and a conversation.

usage: python examples/compat_text.py [MODEL]      (default: nano)
"""

import sys

import torch

from internvl.compat import AutoModel, AutoTokenizer

path = sys.argv[1] if len(sys.argv) > 1 else "nano"
model = AutoModel.from_pretrained(
    path, torch_dtype=torch.float32, low_cpu_mem_usage=True, trust_remote_code=True
).eval()
tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True, use_fast=False)
generation_config = {"max_new_tokens": 64, "do_sample": False}

question = "Hello, who are you?"
response, history = model.chat(
    tokenizer, None, question, generation_config, history=None, return_history=True
)
print(f"User: {question}\nAssistant: {response}")

question = "Can you tell me a story?"
response, history = model.chat(
    tokenizer, None, question, generation_config, history=history, return_history=True
)
print(f"User: {question}\nAssistant: {response}")
print(f"{len(history)} rounds")
