"""The command line, as `p2ptunnel` and as `python -m p2ptunnel`.

Rule: nothing is imported outside `main`, so that Ctrl-C ends the program in good order however early it comes.
"""

import sys

__all__ = ["main"]


def main() -> int:
    """Run the program and return its exit code."""
    try:
        from p2ptunnel.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
