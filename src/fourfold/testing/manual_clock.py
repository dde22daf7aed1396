"""A clock that goes when it is told to."""

import asyncio
import heapq
import itertools


class ManualClock:
    """Time for tests: :meth:`advance` moves it, and wakes whoever sleeps until then.

    With *auto*, a sleep moves the clock itself and returns at once, so that code which waits runs without waiting.
    """

    def __init__(self, *, start_s: float = 1_000.0, epoch_s: float = 1_700_000_000.0, auto: bool = False) -> None:
        self._now_s = start_s
        self._epoch_offset_s = epoch_s - start_s
        self._auto = auto
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        #: Every sleep that was asked for, seconds.
        self.sleeps: list[float] = []

    def monotonic(self) -> float:
        """Return the moment, seconds from an arbitrary start."""
        return self._now_s

    def time(self) -> float:
        """Return the moment, seconds since the epoch."""
        return self._now_s + self._epoch_offset_s

    async def sleep(self, seconds: float) -> None:
        """Return when the clock has moved on by *seconds*."""
        self.sleeps.append(seconds)
        if self._auto:
            self._now_s += seconds
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now_s + seconds, next(self._order), woken))
        await woken

    def advance(self, seconds: float) -> None:
        """Move the clock forward and wake the sleepers whose time has come, in order."""
        self._now_s += seconds
        while self._sleepers and self._sleepers[0][0] <= self._now_s:
            woken = heapq.heappop(self._sleepers)[2]
            if not woken.done():
                woken.set_result(None)
