"""Who waits for room at the orchestrators, oldest first: a newcomer never takes the place of one who has waited."""

import asyncio

from fourfold.gateway.ports import Clock


class Line:
    """The jobs that wait, by model. A job's number says how old it is: the lower, the older."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._model_to_called: dict[str, dict[int, asyncio.Event]] = {}

    async def stand(self, model_id: str, number: int, *, pause_s: float) -> float:
        """Stand in line for *model_id* until called, at most *pause_s*; return the seconds that were left of it."""
        waiting = self._model_to_called.setdefault(model_id, {})
        called = waiting[number] = asyncio.Event()
        ends_s = self._clock.monotonic() + pause_s
        pause, call = asyncio.ensure_future(self._clock.sleep(pause_s)), asyncio.ensure_future(called.wait())
        try:
            await asyncio.wait((pause, call), return_when=asyncio.FIRST_COMPLETED)
        finally:
            del waiting[number]
            for future in (pause, call):
                future.cancel()
            await asyncio.gather(pause, call, return_exceptions=True)
        return max(0.0, ends_s - self._clock.monotonic())

    def is_behind(self, model_id: str, number: int) -> bool:
        """Whether an older job stands in line for *model_id*."""
        return any(other < number for other in self._model_to_called.get(model_id, ()))

    def call(self, model_id: str) -> None:
        """Let the oldest job try at once: another one has left room."""
        waiting = self._model_to_called.get(model_id)
        if waiting:
            waiting[min(waiting)].set()
