"""``fourfold doctor`` and ``fourfold config show``: what this machine and these settings are."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from fourfold import config
from fourfold.cli.app import app
from fourfold.cli.status import FAILED_STATUS
from fourfold.cli.text import printable

_Role = Literal["gateway", "orchestrator", "worker"]

config_app = typer.Typer(no_args_is_help=True, help="Look at the settings.")
app.add_typer(config_app, name="config")

ConfigOption = Annotated[Path | None, typer.Option("--config", help="Settings file; else ./fourfold.toml.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command()
def doctor(config_file: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check this machine: Python, cores, memory, GPU, ports, disk, weights. Exit status 1 if something must change."""
    from fourfold.compose.doctor import Verdict, examine

    findings = list(examine(config.load(config_file).settings))
    if as_json:
        rows = [
            {"subject": f.subject, "verdict": f.verdict.value, "found": f.found, "advice": f.advice} for f in findings
        ]
        typer.echo(json.dumps(rows))
    else:
        table = Table("", "what", "found", "what to do")
        for finding in findings:
            table.add_row(finding.verdict.value, finding.subject, finding.found, finding.advice)
        Console().print(table)
    if any(finding.verdict is Verdict.FAIL for finding in findings):
        raise typer.Exit(FAILED_STATUS)


@app.command()
def health(
    role: Annotated[_Role, typer.Argument(help="Which role to ask.")] = "gateway",
    url: Annotated[
        str | None, typer.Option(help="Its base URL; else this machine, at the port of the settings.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for an answer.")] = 5.0,
    config_file: ConfigOption = None,
) -> None:
    """Ask a running role whether it can take work. Exit status 1 if it cannot, or does not answer."""
    from fourfold.compose.health import ask, base_url

    found = ask(role, url or base_url(role, config.load(config_file, role=role).settings), timeout_s=timeout)
    typer.echo(f"{role}: {printable(found.text)}", err=not found.is_well)
    if not found.is_well:
        raise typer.Exit(FAILED_STATUS)


@config_app.command("show")
def show(
    config_file: ConfigOption = None,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value comes from.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the settings in force; secrets show as stars."""
    loaded = config.load(config_file)
    rows = {key: (value, loaded.origins.get(key, "default")) for key, value in _leaves(loaded.settings)}
    if as_json:
        document = {k: {"value": v, "origin": o} if origin else v for k, (v, o) in rows.items()}
        typer.echo(json.dumps(document, default=str))
        return
    for key, (value, source) in rows.items():
        text = f"{key} = {json.dumps(value, default=str)}"
        typer.echo(f"{text}  # {source}" if origin else text)


def _leaves(section: BaseModel, prefix: str = "") -> list[tuple[str, Any]]:
    """Return every setting under its dotted key."""
    leaves: list[tuple[str, Any]] = []
    for name in type(section).model_fields:
        value = getattr(section, name)
        leaves += _leaves(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else [(prefix + name, value)]
    return leaves
