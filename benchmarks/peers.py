"""InternVL2.5-1B's shape through this package and other runtimes, from the same weights: speed and memory.

    scripts/bench peers --list                        # rows, sides, what is missing here
    scripts/bench peers --quick                       # whether everything works
    scripts/bench peers [--only ROW ...] [--repeat 5] [--threads 2]

Every side is a process of its own; all are asked in turns, with the limits of the machine measured between,
and their outputs compared before anything is timed. A run may be stopped: rows that are complete in the
results are passed over by the next. The peers go into an environment of their own: benchmarks/README.md.
"""

from __future__ import annotations

from runtimes.rows import PEERS
from runtimes.run import go_through

if __name__ == "__main__":
    go_through(PEERS, __doc__, "peers.jsonl")
