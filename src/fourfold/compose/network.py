"""A whole network on one machine: ``fourfold up`` owns the orchestrator, which owns its worker, and the gateway."""

import asyncio
import logging

from fourfold.compose.common import Announce, reachable
from fourfold.compose.models import sold_models
from fourfold.config import Settings, to_json
from fourfold.errors import ConfigError
from fourfold.processes.role import RoleProcess, announce_ready
from fourfold.processes.sockets import listen

log = logging.getLogger(__name__)


async def run_up(settings: Settings, stop: asyncio.Event, announce: Announce = announce_ready) -> None:
    """Run every role as a process of its own; start again what dies. Shutdown: the gateway first, then the others."""
    sold_models(
        settings.orchestrator.models, settings.worker
    )  # a wrong file is told here, once, before anything starts
    settings = _with_ports(settings)
    seller = f"https://{reachable(settings.orchestrator.host)}:{settings.orchestrator.port}"
    sellers = (seller, *settings.gateway.orchestrators)
    ours = settings.model_copy(update={"gateway": settings.gateway.model_copy(update={"orchestrators": sellers})})
    async with (
        _role("orchestrator", settings, settings.orchestrator.drain_s) as orchestrator,
        _role("gateway", ours, settings.gateway.drain_s) as gateway,  # beside it: most of a start is imports
    ):
        for role in (orchestrator, gateway):
            if not await _ready_or_stopped(role, stop):
                return
        url = f"http://{reachable(settings.gateway.host)}:{settings.gateway.port}"
        announce({"role": "up", "gateway": url, "orchestrator": seller})
        await _first_of(stop, orchestrator.gave_up, gateway.gave_up)
        if not stop.is_set():
            raise ConfigError("a role cannot run any more; its own message stands above")


def _role(name: str, settings: Settings, drain_s: float) -> RoleProcess:
    return RoleProcess(name, to_json(settings), drain_s=drain_s)


async def _ready_or_stopped(role: RoleProcess, stop: asyncio.Event) -> bool:
    """Return True once *role* is ready, False if *stop* came first. Raises: ConfigError if it gave up."""
    ready = asyncio.create_task(role.wait_ready(), name=f"ready-{role.role}")
    stopped = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({ready, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            return False
        await ready
        return True
    finally:
        ready.cancel()
        stopped.cancel()
        await asyncio.gather(ready, stopped, return_exceptions=True)


async def _first_of(*events: asyncio.Event) -> None:
    """Return when any of *events* is set."""
    tasks = [asyncio.create_task(event.wait(), name="event") for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _with_ports(settings: Settings) -> Settings:
    """Settle on real ports where 0 asks for free ones: a role that is started again must come back where it was."""
    gateway, orchestrator = settings.gateway, settings.orchestrator
    # Both at once, so that the two cannot be given the same one.
    with (
        listen(gateway.host, gateway.port) as one,
        listen(orchestrator.host, orchestrator.port, flag="--orchestrator-port") as other,
    ):
        ports = one.getsockname()[1], other.getsockname()[1]
    return settings.model_copy(
        update={
            "gateway": gateway.model_copy(update={"port": ports[0]}),
            "orchestrator": orchestrator.model_copy(update={"port": ports[1]}),
        }
    )
