"""`python -m s2s_talk`."""

import sys

from s2s_talk.cli import main

if __name__ == "__main__":
    sys.exit(main())
