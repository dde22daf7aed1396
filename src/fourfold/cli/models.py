"""``fourfold models``: what this installation knows, and the models that come from a hub."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from fourfold.cli.app import app
from fourfold.cli.status import FAILED_STATUS
from fourfold.cli.text import printable
from fourfold.errors import InvalidParameterError, NotFoundError

models_app = typer.Typer(help="List the models that are known here; fetch, check and remove those of a hub.")
app.add_typer(models_app, name="models")

ConfigOption = Annotated[Path | None, typer.Option("--config", help="Settings file; else ./fourfold.toml.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL_ID", help="As on the hub: owner/name.")]


@models_app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    config_file: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """List the models that this installation knows; fetch, check and remove those of a hub."""
    if context.invoked_subcommand is None:
        _show(config_file, as_json=as_json)


@models_app.command("list")
def list_models(
    config_file: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """List the models that this installation knows, with size, revision and licence."""
    _show(config_file, as_json=as_json)


@models_app.command()
def pull(
    model_id: ModelArgument,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit; default: the pinned one, else main.")
    ] = None,
    accept: Annotated[
        bool, typer.Option("--accept-license", "--yes", "-y", help="Accept the model's licence without being asked.")
    ] = False,
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a model from the hub into its cache and pin its revision; what is there already is checked and kept."""
    from fourfold import config
    from fourfold.compose.licences import Acceptances
    from fourfold.engine import hub

    acceptances = Acceptances(config.load(config_file).settings.data_dir)
    listing = hub.look_up(model_id, revision=revision)
    if not accept and not acceptances.has(model_id, listing.licence):
        _ask(listing)
    acceptances.add(model_id, listing.licence)
    pin = hub.pull(listing)
    if as_json:
        typer.echo(json.dumps(_facts(pin)))
    else:
        size = f"{pin.size / 1e9:.2f} GB" if pin.size >= 1e8 else f"{pin.size / 1e6:.1f} MB"
        typer.echo(f"{model_id}: {size}, pinned to {pin.commit}, licence {printable(pin.licence)}")


@models_app.command()
def verify(
    model_id: Annotated[str | None, typer.Argument(metavar="[MODEL_ID]", help="Default: every pulled model.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare each file of a pulled model with the pinned revision, byte by byte. Exit status 1 if one differs."""
    from fourfold.engine import hub
    from fourfold.engine.hub_pins import Condition, condition, pins, read_pin

    hub.require_library()
    pin = read_pin(model_id) if model_id else None
    if model_id and pin is None:
        raise NotFoundError(f"{model_id} was not pulled here; fetch it with: fourfold models pull {model_id}")
    rows = [
        {"model_id": pinned.model_id, "file": file.name, "condition": condition(pinned, file).value}
        for pinned in ([pin] if pin else pins())
        for file in pinned.files
    ]
    bad = [row for row in rows if row["condition"] != Condition.GOOD.value]
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        for row in bad:
            typer.echo(f"{row['model_id']}: {row['file']} is {row['condition']}")
        typer.echo(f"{len(rows) - len(bad)} of {len(rows)} files are as they were pulled")
        for name in dict.fromkeys(row["model_id"] for row in bad):
            typer.echo(f"mend it with: fourfold models pull {name}")
    if bad:
        raise typer.Exit(FAILED_STATUS)


@models_app.command()
def remove(model_id: ModelArgument, as_json: JsonOption = False) -> None:
    """Delete a model from the hub's cache, every revision of it."""
    from fourfold.engine import hub

    freed = hub.remove(model_id)
    typer.echo(json.dumps({"model_id": model_id, "freed_bytes": freed}) if as_json else f"freed {freed / 1e6:.1f} MB")


def _ask(listing: Any) -> None:
    """Have the licence accepted at the prompt."""
    terms = f"the licence of {listing.model_id} is {printable(listing.licence)}; it stands at {listing.page}"
    if not sys.stdin.isatty():
        raise InvalidParameterError(f"{terms}. Read it, and say that you accept it: --accept-license")
    typer.echo(terms, err=True)
    typer.confirm(f"Accept it and fetch {listing.size / 1e6:.1f} MB?", abort=True, err=True)


def _show(config_file: Path | None, *, as_json: bool) -> None:
    from fourfold import config
    from fourfold.compose.inventory import inventory

    rows = inventory(config.load(config_file).settings.worker)
    if as_json:
        typer.echo(json.dumps([row.to_json() for row in rows]))
        return
    table = Table(
        Column("model", no_wrap=True), "alias", "here", "size", "what it is; licence of its weights", box=None
    )
    for row in rows:
        size = "" if row.size is None else f"{row.size / 1e6:.1f} MB"
        pinned = f"; revision {row.commit[:12]}" if row.commit else ""
        what = f"{row.title}; {row.weights_licence}{pinned}"
        table.add_row(row.model_id, ", ".join(row.aliases), "yes" if row.installed else "no", size, printable(what))
    Console().print(table)


def _facts(pin: Any) -> dict[str, Any]:
    return {
        "model_id": pin.model_id,
        "revision": pin.revision,
        "commit": pin.commit,
        "licence": pin.licence,
        "size_bytes": pin.size,
        "folder": str(pin.folder),
        "files": [file.name for file in pin.files],
    }
