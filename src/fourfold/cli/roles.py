"""``fourfold up | gateway | orchestrator | worker``: read the settings, run the role until it is told to stop.

Each command imports its role's composition late: a gateway must not pay for what only a worker needs.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fourfold import config
from fourfold.cli.app import app
from fourfold.cli.lifetime import Role, run_role
from fourfold.engine.registry import DEFAULT_MODEL
from fourfold.processes.role import announce_ready

ConfigOption = Annotated[Path | None, typer.Option("--config", help="Settings file; else ./fourfold.toml.")]
DataDirOption = Annotated[Path | None, typer.Option("--data-dir", help="Where state and results are kept.")]
HostOption = Annotated[str | None, typer.Option(help="Address to listen on.")]
PortOption = Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")]
LogLevelOption = Annotated[str | None, typer.Option(help="debug, info, warning or error.")]
LogFormatOption = Annotated[str | None, typer.Option(help="console or json.")]


@app.command()
def up(
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
    host: Annotated[str | None, typer.Option(help="Address of the gateway.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port of the gateway; 0: a free one.")] = None,
    orchestrator_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the orchestrator; 0: a free one.")
    ] = None,
    models: Annotated[Path | None, typer.Option(help="aiModels.json: what is sold; else every embedded model.")] = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> None:
    """Run a whole network here: a gateway, an orchestrator and its worker."""
    from fourfold.compose.network import run_up

    flags = {
        "data_dir": data_dir,
        "gateway.host": host,
        "gateway.port": port,
        "orchestrator.port": orchestrator_port,
        "orchestrator.models": models,
    }
    _run("up", run_up, config_file, flags, log_level, log_format)


@app.command()
def gateway(
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
    host: HostOption = None,
    port: PortOption = None,
    orchestrator: Annotated[
        list[str] | None, typer.Option(help="Base URL of an orchestrator, https://host:port; repeat for more.")
    ] = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> None:
    """Run a gateway: takes a client's image, returns a client's image."""
    from fourfold.compose.gateway import run_gateway

    flags = {
        "data_dir": data_dir,
        "gateway.host": host,
        "gateway.port": port,
        "gateway.orchestrators": orchestrator or None,
    }
    _run("gateway", run_gateway, config_file, flags, log_level, log_format)


@app.command()
def orchestrator(
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
    host: HostOption = None,
    port: PortOption = None,
    models: Annotated[Path | None, typer.Option(help="aiModels.json: what is sold; else every embedded model.")] = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> None:
    """Run an orchestrator: sells input pixels, gives the work to its workers."""
    from fourfold.compose.orchestrator import run_orchestrator

    flags = {
        "data_dir": data_dir,
        "orchestrator.host": host,
        "orchestrator.port": port,
        "orchestrator.models": models,
    }
    _run("orchestrator", run_orchestrator, config_file, flags, log_level, log_format)


@app.command()
def worker(
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
    host: HostOption = None,
    port: PortOption = None,
    models: Annotated[list[str] | None, typer.Option(help="A model to offer; repeat for more. Default: all.")] = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> None:
    """Run a worker: holds models, speaks the API of Livepeer's runner containers."""
    from fourfold.compose.worker import run_worker

    flags = {
        "data_dir": data_dir,
        "worker.host": host,
        "worker.port": port,
        "worker.models": models or None,
    }
    _run("worker", run_worker, config_file, flags, log_level, log_format)


def _run(
    name: str,
    role: Role,
    config_file: Path | None,
    flags: dict[str, Any],
    log_level: str | None,
    log_format: str | None,
) -> None:
    """Run *role* to its end."""
    _have_standard_streams()
    flags |= {"log.level": log_level, "log.format": log_format}
    settings = config.load(config_file, flags=flags, role=name).settings
    run_role(name, role, settings, announce=_tell_starter)


def _have_standard_streams() -> None:
    """Open those that our starter closed as the null device: a socket in their place would be written to."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def _tell_starter(facts: dict[str, Any]) -> None:
    """Say that the role is ready, in words or as a line of JSON; a reader that has left is no reason to end."""
    is_person = sys.stdout is not None and sys.stdout.isatty()  # None: whoever started us closed it
    try:
        (_tell if is_person else announce_ready)(facts)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit would try it once more


def _tell(facts: dict[str, Any]) -> None:
    """Say to a person what a program reads from the ready line."""
    if facts["role"] != "up":
        typer.echo(f"{facts['role']} ready at {facts['url']}; Ctrl-C stops it")
        return
    gateway = facts["gateway"]
    typer.echo(f"ready: gateway {gateway}, orchestrator {facts['orchestrator']}; Ctrl-C stops everything")
    typer.echo(f"try:   curl {gateway}/upscale -F model_id={DEFAULT_MODEL} -F prompt= -F image=@photo.jpg")
