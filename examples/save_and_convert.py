"""Save a model in the published layout and in that of transformers, and load it again.

usage: python examples/save_and_convert.py [MODEL] [DIRECTORY]      (default: nano, converted)
"""

import sys
from pathlib import Path

import internvl

model = internvl.load(sys.argv[1] if len(sys.argv) > 1 else "nano")
target = Path(sys.argv[2] if len(sys.argv) > 2 else "converted")

question = "Hello, who are you?"
before = model.chat(question, max_new_tokens=16).text
for layout in ("official", "hf"):
    internvl.save(model, target / layout, layout=layout)
    after = internvl.load(target / layout).chat(question, max_new_tokens=16).text
    files = sorted(path.name for path in (target / layout).iterdir())
    print(f"{layout}: {', '.join(files)}")
    print("the same answer" if after == before else f"{before!r} became {after!r}")

# From one directory to another, without a model in memory: `internvl convert SOURCE TARGET --layout hf`.
