"""Several admitted jobs on one device: each takes one step in its turn, and any may be cancelled at any moment.

A job's work is an iterator: each ``next`` is one step on the device and yields the regions that it finished.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fourfold.engine.base import EngineEvent, JobDone, JobFailed, Progress, RegionDone
from fourfold.errors import FourfoldError


@dataclass(slots=True)
class _Turn:
    job_id: str
    work: Iterator[Sequence[RegionDone]]
    total: int  #: steps
    notes: dict[str, Any]
    done: int = 0
    is_cancelled: bool = False


class Turns:
    """The admitted jobs, in the order of their next step. ``cancel`` may come from another thread."""

    def __init__(self, *, stop_step: Callable[[], None] = lambda: None) -> None:
        """*stop_step* is called, from the cancelling thread, when the step that runs just then is to be given up."""
        self._stop_step = stop_step
        self._waiting: deque[_Turn] = deque()
        self._running: _Turn | None = None
        self._lock = threading.Lock()

    @property
    def busy(self) -> bool:
        """Whether a job is unfinished."""
        with self._lock:
            return bool(self._waiting or (self._running and not self._running.is_cancelled))

    def admit(self, job_id: str, work: Iterator[Sequence[RegionDone]], *, total: int, notes: dict[str, Any]) -> None:
        """Append the job; *work* yields *total* times."""
        with self._lock:
            self._waiting.append(_Turn(job_id, work, total, notes))

    def is_cancelled(self) -> bool:
        """Say whether the running step is to be given up; *work* asks this just before it starts the device."""
        running = self._running
        return running is not None and running.is_cancelled

    def step(self) -> list[EngineEvent]:
        """Take the next job's next step and return what changed; nothing without jobs, or when it was cancelled."""
        with self._lock:
            if not self._waiting:
                return []
            turn = self._running = self._waiting.popleft()
        failure: FourfoldError | None = None
        regions: Sequence[RegionDone] = ()
        try:
            regions = next(turn.work)
        except FourfoldError as exc:
            failure = exc
        finally:
            with self._lock:
                self._running = None
                is_cancelled = turn.is_cancelled
        if is_cancelled:
            return []
        if failure is not None:
            return [JobFailed(turn.job_id, failure)]
        turn.done += 1
        events: list[EngineEvent] = [*regions, Progress(turn.job_id, turn.done, turn.total)]
        if turn.done == turn.total:
            return [*events, JobDone(turn.job_id, turn.notes)]
        with self._lock:
            if turn.is_cancelled:
                return []
            self._waiting.append(turn)
        return events

    def cancel(self, job_id: str) -> None:
        """Forget the job; if its step runs just now, have it given up."""
        with self._lock:
            self._waiting = deque(turn for turn in self._waiting if turn.job_id != job_id)
            if self._running is not None and self._running.job_id == job_id:
                self._running.is_cancelled = True
                self._stop_step()
