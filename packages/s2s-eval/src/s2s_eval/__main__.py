"""`python -m s2s_eval`."""

import sys

from s2s_eval.cli import main

if __name__ == "__main__":
    sys.exit(main())
