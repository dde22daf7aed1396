"""The command: ``fourfold`` or ``python -m fourfold``."""

import sys


def main() -> None:
    """Run the command line, or the one role that an owner wants."""
    # Imported here so that `python -m fourfold.worker.child` pays nothing for it.
    if sys.argv[2:3] == ["--supervised"]:
        from fourfold.cli import supervised

        supervised.run(sys.argv[1])
    else:
        from fourfold.cli.app import run

        run()


if __name__ == "__main__":
    main()
