"""The command line: arguments, progress bars and exit codes; no logic."""


def run() -> None:
    """Run the command line."""
