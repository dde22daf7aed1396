"""A role from its first line of log to its end: signals, the owner's pipe, signs of life. Nothing of typer here."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final

from fourfold.config import Settings
from fourfold.processes.inside import raise_descriptor_limit
from fourfold.processes.role import announce_ready, tell_alive
from fourfold.telemetry import set_up_logging

#: A role whose owner has gone has this long to tidy up.
_ORPHAN_S: Final = 3.0

Announce = Callable[[dict[str, Any]], None]
Role = Callable[[Settings, asyncio.Event, Announce], Coroutine[Any, Any, None]]


def run_role(
    name: str, role: Role, settings: Settings, *, announce: Announce = announce_ready, supervised: bool = False
) -> None:
    """Run *role* until it is told to stop. A supervised one also stops when standard input ends: its owner's pipe."""
    set_up_logging(name, level=settings.log.level, style=settings.log.format)
    asyncio.run(_until_stopped(role, settings, announce, supervised=supervised))


async def _until_stopped(role: Role, settings: Settings, announce: Announce, *, supervised: bool) -> None:
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
        await role(settings, stop, announce)
    finally:
        life.cancel()


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
