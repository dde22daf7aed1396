"""Ctrl-C and SIGTERM: the first cancels the work in order, the second ends it at once."""

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final

import psutil

_NUMBERS: Final = (signal.SIGINT, signal.SIGTERM)
#: After the second signal: time to remove what is unfinished before the process ends without.
_HARD_STOP_S: Final = 1.0


async def until_interrupted(work: Coroutine[Any, Any, None], on_first: Callable[[], None]) -> int | None:
    """Run *work* to its end and return None, or the number of the signal that cancelled it.

    On the first signal *on_first* is called and *work* cancelled: it cleans up, and its children stop. On the second
    one the children are killed, so that there is nothing left to wait for. Signals that our starter ignores stay so.
    """
    task = asyncio.ensure_future(work)
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        if len(received) == 1:
            on_first()
            task.cancel()
        else:
            _end_at_once(128 + number)

    with _handling(stop):
        try:
            await task
        except asyncio.CancelledError:
            if not received:
                raise
    return received[0] if received else None


@contextlib.contextmanager
def _handling(stop: Callable[[int], None]) -> Iterator[None]:
    """Have *stop* called in the event loop for each signal during the block."""
    loop = asyncio.get_running_loop()
    ours = [number for number in _NUMBERS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.getsignal(number) for number in ours}
    for number in ours:
        if sys.platform == "win32":
            signal.signal(number, lambda got, _frame: loop.call_soon_threadsafe(stop, got))
        else:
            loop.add_signal_handler(number, stop, number)
    try:
        yield
    finally:
        for number, handler in before.items():
            if sys.platform != "win32":
                loop.remove_signal_handler(number)
            signal.signal(number, handler)


def _end_at_once(status: int) -> None:
    timer = threading.Timer(_HARD_STOP_S, os._exit, [status])
    timer.daemon = True
    timer.start()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
