"""The command line: arguments, progress bars and exit codes; no logic."""

from fourfold.cli.app import run

__all__ = ["run"]
