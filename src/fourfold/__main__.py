"""The command: ``fourfold`` or ``python -m fourfold``."""


def main() -> None:
    """Run the command line."""
    from fourfold.cli import run  # imported here so that `python -m fourfold.worker.child` pays nothing for it

    run()


if __name__ == "__main__":
    main()
