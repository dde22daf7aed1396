"""What the roles' compositions share."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from fourfold.engine import registry
from fourfold.engine.base import EngineCard
from fourfold.results.base import ResultStore

log = logging.getLogger(__name__)

Announce = Callable[[dict[str, Any]], None]
"""Told once that the role is ready, with the facts that its owner needs."""

_SWEEP_S: Final = 60.0


async def load(*modules: str) -> None:
    """Import *modules* off the event loop: children that were just started wait for it to be told their settings."""
    for module in modules:
        await asyncio.to_thread(import_module, module)


def loadable_cards(paths: Mapping[str, Path]) -> Mapping[str, EngineCard]:
    """Return the models that this installation can load, the default first.

    Args: *paths*, model_id -> folder, for models whose files do not come inside a package.
    """
    return {
        model_id: card
        for model_id, card in registry.cards().items()
        if registry.why_not_loadable(model_id, paths) is None
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
