"""`python -m internvl` is the command `internvl`."""

import sys

from internvl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
