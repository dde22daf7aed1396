"""The commands, and what an error is at a prompt: one clear line on standard error and a stable exit status."""

import sys
from typing import Annotated, Final

import typer
from rich.console import Console

from fourfold import __version__
from fourfold.errors import ClientError, ConfigError, FourfoldError
from fourfold.processes.role import CONFIG_EXIT_STATUS

#: The work could not be done; the message says why.
FAILED_STATUS: Final = 1
#: The picture or an argument is at fault; trying again changes nothing.
INPUT_STATUS: Final = 65
#: Ended by Ctrl-C.
INTERRUPTED_STATUS: Final = 130

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
    from fourfold.cli import machine, roles, upscale  # noqa: F401  # each adds its commands to `app`

    try:
        app()
    except FourfoldError as exc:
        Console(stderr=True, soft_wrap=True).print(f"error: {exc.message}", markup=False, highlight=False)
        sys.exit(_status(exc))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED_STATUS)


def _status(exc: FourfoldError) -> int:
    """Return the exit status that stands for *exc*."""
    if isinstance(exc, ConfigError):
        return CONFIG_EXIT_STATUS
    return INPUT_STATUS if isinstance(exc, ClientError) else FAILED_STATUS
