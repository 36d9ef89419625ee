"""`python -m s2s_train`."""

import sys

from s2s_train.cli import main

if __name__ == "__main__":
    sys.exit(main())
