"""The commands, and what an error is at a prompt: one clear line on standard error and a stable exit status."""

import signal
import sys
from typing import Annotated, Final

import typer

from fourfold import __version__
from fourfold.cli.status import INTERRUPTED_STATUS, status_of
from fourfold.cli.text import printable
from fourfold.errors import FourfoldError

_ROLES: Final = frozenset({"up", "gateway", "orchestrator", "worker"})

app = typer.Typer(
    name="fourfold",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Make pictures four times as wide and high: here, or through a network of gateways and orchestrators.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fourfold {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def run() -> None:
    """Run the command line and exit with its status."""
    # Each adds its commands to `app`; a role that starts does not wait for those of the others.
    if sys.argv[1:2] and sys.argv[1] in _ROLES:
        from fourfold.cli import roles
    else:
        from fourfold.cli import compare, machine, models, roles, upscale  # noqa: F401

    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see `fourfold.__main__`
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        app()
    except FourfoldError as exc:
        from rich.console import Console  # late, for the same reason

        message = "\n".join(printable(line) for line in exc.message.splitlines())
        Console(stderr=True, soft_wrap=True).print(f"error: {message}", markup=False, highlight=False)
        sys.exit(status_of([exc]))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED_STATUS)
