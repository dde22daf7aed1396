"""Several admitted jobs on one device: they take turns, and any may be cancelled at any moment.

A job's work is a generator: each ``next`` is one step on the device and yields the regions that it finished. A job
keeps its turn until it has delivered something, because between two deliveries it holds a tile's half-made features in
memory; then the next job has its turn, so that a small one never waits for the whole of a large one.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from fourfold.engine.base import EngineEvent, JobDone, JobFailed, MemoryRanOut, Progress, RegionDone
from fourfold.errors import FourfoldError, OutOfMemoryError


@dataclass(frozen=True, slots=True)
class Extra:
    """A step that was not in the plan, so that it does not count as progress."""

    events: Sequence[RegionDone | MemoryRanOut] = ()


Work: TypeAlias = Generator[Sequence[RegionDone] | Extra, None, None]
"""One ``next`` is one step; it raises FourfoldError when the job cannot go on."""


@dataclass(slots=True)
class _Turn:
    job_id: str
    work: Work
    total: int  #: steps
    notes: dict[str, Any]
    done: int = 0
    is_cancelled: threading.Event = field(default_factory=threading.Event)


class Turns:
    """The admitted jobs in the order of their turns.

    One thread calls everything but ``cancel``, which may come from any thread.
    """

    def __init__(self, *, stop_step: Callable[[], None] = lambda: None) -> None:
        """*stop_step* is called, by the cancelling thread, when the running step is of no use any more."""
        self._stop_step = stop_step
        self._lock = threading.Lock()
        self._turns: deque[_Turn] = deque()
        self._running: _Turn | None = None

    @property
    def busy(self) -> bool:
        """Whether a job is unfinished."""
        return bool(self._turns)

    @property
    def is_step_cancelled(self) -> bool:
        """Whether the running step is of no use any more; its work asks before it starts the device."""
        running = self._running
        return running is not None and running.is_cancelled.is_set()

    def admit(self, job_id: str, work: Work, *, total: int, notes: dict[str, Any]) -> None:
        """Append a job whose *work* takes *total* steps, extra ones not counted; *notes* come with its end.

        Raises:
            ValueError: a job of this id is still unfinished.
        """
        with self._lock:
            if any(turn.job_id == job_id for turn in self._turns):
                raise ValueError(f"job {job_id} is already admitted")
            self._turns.append(_Turn(job_id, work, total, notes))

    def step(self) -> list[EngineEvent]:
        """Take one step of the job whose turn it is; return what changed, which for a cancelled job is nothing."""
        with self._lock:
            if not self._turns:
                return []
            turn = self._running = self._turns[0]
        made: Sequence[RegionDone] | Extra = ()
        failure: FourfoldError | None = None
        try:
            made = next(turn.work)
        except FourfoldError as exc:
            failure = exc
        except MemoryError as exc:
            failure = OutOfMemoryError("this machine has no memory left for the job")
            failure.__cause__ = exc
        is_planned = not isinstance(made, Extra)
        turn.done += is_planned
        regions = made.events if isinstance(made, Extra) else made
        with self._lock:
            self._running = None
            if turn.is_cancelled.is_set():
                turn.work.close()
                return []
            is_done = failure is not None or (is_planned and turn.done == turn.total)
            if is_done or regions:
                self._turns.popleft()
            if regions and not is_done:
                self._turns.append(turn)
        if is_done:
            turn.work.close()
        if failure is not None:
            return [JobFailed(turn.job_id, failure)]
        events: list[EngineEvent] = [*regions]
        if is_planned:
            events.append(Progress(turn.job_id, turn.done, turn.total))
        return [*events, JobDone(turn.job_id, turn.notes)] if is_done else events

    def cancel(self, job_id: str) -> None:
        """Forget the job, and have its step stopped if it runs just now. Unknown ids are fine."""
        with self._lock:
            for turn in self._turns:
                if turn.job_id == job_id:
                    break
            else:
                return
            turn.is_cancelled.set()
            self._turns.remove(turn)
            if turn is self._running:
                self._stop_step()
            else:
                turn.work.close()

    def clear(self) -> None:
        """Forget every job; not while a step runs."""
        with self._lock:
            for turn in self._turns:
                turn.work.close()
            self._turns.clear()
