"""What the roles' compositions share."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any, Final

from fourfold.config import WorkerSettings
from fourfold.engine import registry
from fourfold.engine.base import EngineCard
from fourfold.engine.networks import LocalNetwork, Networks
from fourfold.errors import ConfigError
from fourfold.results.base import ResultStore

log = logging.getLogger(__name__)

Announce = Callable[[dict[str, Any]], None]
"""Told once that the role is ready, with the facts that its owner needs."""

_SWEEP_S: Final = 60.0


async def load(*modules: str) -> None:
    """Import *modules* off the event loop: children that were just started wait for it to be told their settings."""
    for module in modules:
        await asyncio.to_thread(import_module, module)


def loadable_cards(settings: WorkerSettings) -> Mapping[str, EngineCard]:
    """Return the models that a worker with *settings* can load here, the default first, its own networks last.

    Raises: ConfigError if a network has the id of a known model.
    """
    paths, networks = settings.model_paths, own_networks(settings)
    ids = (*registry.cards(), *networks)
    return {
        model_id: registry.card(model_id, networks)
        for model_id in ids
        if registry.why_not_loadable(model_id, paths, networks) is None
    }


def own_networks(settings: WorkerSettings) -> Networks:
    """Return the networks that *settings* name. Raises: ConfigError if one has the id of a known model."""
    taken = sorted(settings.networks.keys() & registry.cards().keys())
    if taken:
        raise ConfigError(f"worker.networks: {taken[0]!r} is the id of another model; call it local/NAME")
    return {
        model_id: LocalNetwork(network.path, network.sha256, network.licence, network.margin_px)
        for model_id, network in settings.networks.items()
    }


@asynccontextmanager
async def background(work: Any, *, name: str) -> AsyncIterator[None]:
    """Run the coroutine *work* beside the body, and end it with the body; its failure ends the body."""
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work, name=name)
            yield
            task.cancel()
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from failed  # one cause, told as what it is


@asynccontextmanager
async def drains(stop: asyncio.Event, drain: Callable[[], Any]) -> AsyncIterator[None]:
    """Call *drain* as soon as *stop* is set."""

    async def watch() -> None:
        await stop.wait()
        drain()

    async with background(watch(), name="drain"):
        yield


async def sweep_forever(store: ResultStore) -> None:
    """Remove expired results again and again: a store that nobody writes to must empty itself, too."""
    while True:
        await asyncio.sleep(_SWEEP_S)
        await store.sweep()


def reachable(host: str) -> str:
    """Return an address of this machine under which a server on *host* is reached from it, as it stands in a URL."""
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # compared with, not bound to
    return f"[{local}]" if ":" in local else local
