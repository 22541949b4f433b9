"""Many requests with a picture at once: tokens a second of 1, 4 and 16, and a second question or round.

    scripts/bench throughput [--quick] [--only ROW ...] [--repeat 5] [--threads 2]

For the shape of InternVL2.5-1B with random weights, and for `nano`. Sides, turns and results are those of
`peers`. Every request is one tile and 40 tokens, answered with 64; all come at once, each with a new picture.
"""

from __future__ import annotations

from runtimes.rows import THROUGHPUT
from runtimes.run import go_through

if __name__ == "__main__":
    go_through(THROUGHPUT, __doc__, "throughput.jsonl")
