"""Talk without a picture: one question, then a conversation.

usage: python examples/chat_text.py [MODEL]      (default: nano)
"""

import sys

import internvl

model = internvl.load(sys.argv[1] if len(sys.argv) > 1 else "nano")

reply = model.chat("Hello, who are you?", max_new_tokens=64)
print("Assistant:", reply.text)

reply = model.chat("Tell me a story.", history=reply.history, max_new_tokens=64)
print("Assistant:", reply.text)

print(f"{len(reply.history.messages) // 2} rounds, {reply.usage.prompt_tokens} tokens in the last prompt")
