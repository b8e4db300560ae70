"""`python -m secateur` is the command `secateur`."""

import sys

from secateur import interrupts


def main() -> None:
    """Run the command in this process, which Ctrl-C ends at any moment from now on."""
    interrupts.listen(sys.argv[1:])
    from secateur.cli import main as command

    try:
        command()
    finally:
        interrupts.finish()


if __name__ == "__main__":
    main()
