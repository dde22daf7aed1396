"""``fourfold up | gateway | orchestrator | worker``: read the settings, run the role until it is told to stop.

Each command imports its role's composition late: a gateway must not pay for what only a worker needs.
"""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from fourfold import config
from fourfold.cli.app import app
from fourfold.config import Settings
from fourfold.engine.registry import DEFAULT_MODEL
from fourfold.processes.inside import raise_descriptor_limit
from fourfold.processes.role import announce_ready, tell_alive
from fourfold.telemetry import set_up_logging

#: A role whose owner has gone has this long to tidy up.
_ORPHAN_S: Final = 3.0

_Role = Callable[[Settings, asyncio.Event, Callable[[dict[str, Any]], None]], Coroutine[Any, Any, None]]

ConfigOption = Annotated[Path | None, typer.Option("--config", help="Settings file; else ./fourfold.toml.")]
DataDirOption = Annotated[Path | None, typer.Option("--data-dir", help="Where state and results are kept.")]
HostOption = Annotated[str | None, typer.Option(help="Address to listen on.")]
PortOption = Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")]
LogLevelOption = Annotated[str | None, typer.Option(help="debug, info, warning or error.")]
LogFormatOption = Annotated[str | None, typer.Option(help="console or json.")]
SupervisedOption = Annotated[bool, typer.Option("--supervised", hidden=True)]


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
    _run("up", run_up, config_file, flags, log_level, log_format, supervised=False)


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
    supervised: SupervisedOption = False,
) -> None:
    """Run a gateway: takes a client's image, returns a client's image."""
    from fourfold.compose.gateway import run_gateway

    flags = {
        "data_dir": data_dir,
        "gateway.host": host,
        "gateway.port": port,
        "gateway.orchestrators": orchestrator or None,
    }
    _run("gateway", run_gateway, config_file, flags, log_level, log_format, supervised=supervised)


@app.command()
def orchestrator(
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
    host: HostOption = None,
    port: PortOption = None,
    models: Annotated[Path | None, typer.Option(help="aiModels.json: what is sold; else every embedded model.")] = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
    supervised: SupervisedOption = False,
) -> None:
    """Run an orchestrator: sells input pixels, gives the work to its workers."""
    from fourfold.compose.orchestrator import run_orchestrator

    flags = {
        "data_dir": data_dir,
        "orchestrator.host": host,
        "orchestrator.port": port,
        "orchestrator.models": models,
    }
    _run("orchestrator", run_orchestrator, config_file, flags, log_level, log_format, supervised=supervised)


@app.command()
def worker(
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
    host: HostOption = None,
    port: PortOption = None,
    models: Annotated[list[str] | None, typer.Option(help="A model to offer; repeat for more. Default: all.")] = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
    supervised: SupervisedOption = False,
) -> None:
    """Run a worker: holds models, speaks the API of Livepeer's runner containers."""
    from fourfold.compose.worker import run_worker

    flags = {
        "data_dir": data_dir,
        "worker.host": host,
        "worker.port": port,
        "worker.models": models or None,
    }
    _run("worker", run_worker, config_file, flags, log_level, log_format, supervised=supervised)


def _run(
    name: str,
    role: _Role,
    config_file: Path | None,
    flags: dict[str, Any],
    log_level: str | None,
    log_format: str | None,
    *,
    supervised: bool,
) -> None:
    """Run *role* to its end. A supervised one takes its settings from its owner, on standard input."""
    if supervised:
        settings = config.from_json(sys.stdin.buffer.readline().decode())
    else:
        flags |= {"log.level": log_level, "log.format": log_format}
        settings = config.load(config_file, flags=flags, role=name).settings
    set_up_logging(name, level=settings.log.level, style=settings.log.format)
    asyncio.run(_until_stopped(role, settings, supervised=supervised))


async def _until_stopped(role: _Role, settings: Settings, *, supervised: bool) -> None:
    """Run *role*; SIGTERM, or Ctrl-C at the top process, drains it, and a second one ends it at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set() and not supervised:
            for task in asyncio.all_tasks(loop):
                task.cancel()
        stop.set()

    if sys.platform == "win32":
        signal.signal(signal.SIGINT, lambda *_: loop.call_soon_threadsafe(on_signal))
    else:
        loop.add_signal_handler(signal.SIGTERM, on_signal)
        if supervised:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        else:
            loop.add_signal_handler(signal.SIGINT, on_signal)
    if supervised:
        _stop_with_owner(loop, stop)
    raise_descriptor_limit()
    life = asyncio.create_task(tell_alive() if supervised else stop.wait(), name="alive")
    try:
        await role(settings, stop, announce_ready if supervised or not sys.stdout.isatty() else _tell)
    finally:
        life.cancel()


def _tell(facts: dict[str, Any]) -> None:
    """Say to a person what a program reads from the ready line."""
    if facts["role"] != "up":
        typer.echo(f"{facts['role']} ready at {facts['url']}; Ctrl-C stops it")
        return
    gateway = facts["gateway"]
    typer.echo(f"ready: gateway {gateway}, orchestrator {facts['orchestrator']}; Ctrl-C stops everything")
    typer.echo(f"try:   curl {gateway}/upscale -F model_id={DEFAULT_MODEL} -F prompt= -F image=@photo.jpg")


def _stop_with_owner(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Stop when standard input ends: the owner has gone, and nobody is left to wait for a drain."""

    def watch() -> None:
        # Not through `sys.stdin`: its lock, held by a blocked daemon thread, would crash the interpreter's shutdown.
        while os.read(sys.stdin.fileno(), 4096):
            pass
        timer = threading.Timer(_ORPHAN_S, os._exit, [1])
        timer.daemon = True
        timer.start()
        loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=watch, name="owner-watch", daemon=True).start()
