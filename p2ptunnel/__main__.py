"""`python -m p2ptunnel`: the command line."""

import sys

from p2ptunnel.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
