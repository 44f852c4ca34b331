"""`python -m rlgym.deploy`: the command of the distribution for robots, from a checkout."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
