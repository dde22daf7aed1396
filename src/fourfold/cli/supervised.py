"""A role as its owner starts it: ``fourfold ROLE --supervised``, settings on standard input, no command line at all.

Most of a start is imports, and a network has four of them one after the other: typer, rich and the other commands stay
out, and what serves a role is loaded by its composition.
"""

import sys
from importlib import import_module

from fourfold import config
from fourfold.cli.lifetime import run_role
from fourfold.cli.status import status_of
from fourfold.cli.text import printable
from fourfold.errors import FourfoldError


def run(name: str) -> None:
    """Run the role *name* for the owner of this process, and exit with its status."""
    try:
        settings = config.from_json(sys.stdin.buffer.readline().decode())
        run_role(name, getattr(import_module(f"fourfold.compose.{name}"), f"run_{name}"), settings, supervised=True)
    except FourfoldError as exc:
        print("error:", "\n".join(printable(line) for line in exc.message.splitlines()), file=sys.stderr, flush=True)
        sys.exit(status_of([exc]))
