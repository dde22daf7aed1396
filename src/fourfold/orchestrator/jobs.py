"""The jobs that an orchestrator has in hand: what state each is in, who watches it, how to cancel it.

Not here: queues and retries (``workers``), and jobs that have ended; a job is the gateway's to remember.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from fourfold.errors import CancelledByClientError, NotFoundError

_MAX_WATCHERS: Final = 16  #: of one job


class JobState(Enum):
    """Where a job stands; the value is its name on the wire."""

    QUEUED = "queued"  # its request is being read or checked
    RUNNING = "running"  # a worker has it
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


_ENDED: Final = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})


@dataclass(slots=True, eq=False)
class Job:
    """One job in hand."""

    job_id: str
    task: asyncio.Task[Any]  #: cancelled when the job is
    state: JobState = JobState.QUEUED
    facts: dict[str, int] = field(default_factory=dict)  #: done and total steps, while it runs on a worker that tells
    #: Set once somebody watches: until then nobody need be asked for progress.
    watched: asyncio.Event = field(default_factory=asyncio.Event)
    watchers: int = 0
    has_run: bool = False  #: a worker has had it
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, state: JobState, **facts: int) -> None:
        """Set the state and wake those who watch."""
        self.state, self.facts = state, facts
        self.has_run = self.has_run or state is JobState.RUNNING
        self._changed.set()
        self._changed = asyncio.Event()

    def progress(self, done: int, total: int) -> None:
        """Note that *done* of *total* steps have been taken."""
        self.tell(JobState.RUNNING, done=done, total=total)

    async def states(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the state now and after each change, up to and including the last."""
        self.watched.set()
        while True:
            state, facts, changed = self.state, self.facts, self._changed
            yield {"state": state.value, **facts}
            if state in _ENDED:
                return
            if self._changed is changed:
                await changed.wait()


class Jobs:
    """All jobs in hand, by id."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def queued(self) -> int:
        """How many of them no worker has had yet."""
        return sum(job.state is JobState.QUEUED for job in self._jobs.values())

    @contextlib.contextmanager
    def open(self, job_id: str, task: asyncio.Task[Any]) -> Iterator[Job]:
        """Hold a job while the context lasts; how the context ends is how the job ended.

        An open job of the same id is cancelled: its gateway has lost the connection and asks again.
        """
        earlier = self._jobs.get(job_id)
        if earlier is not None:
            earlier.task.cancel()
        job = self._jobs[job_id] = Job(job_id, task)
        try:
            yield job
            job.tell(JobState.SUCCEEDED)
        except (asyncio.CancelledError, CancelledByClientError):
            job.tell(JobState.CANCELLED)
            raise
        except BaseException:
            job.tell(JobState.FAILED)
            raise
        finally:
            if self._jobs.get(job_id) is job:
                del self._jobs[job_id]

    def cancel(self, job_id: str) -> None:
        """Cancel the job. Raises: NotFoundError if there is none, perhaps because it has just ended."""
        self._get(job_id).task.cancel()

    async def watch(self, job_id: str) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the job's states. Raises: NotFoundError if there is no such job, or too many watch it."""
        job = self._get(job_id)
        if job.watchers >= _MAX_WATCHERS:
            raise NotFoundError(f"{_MAX_WATCHERS} already watch job {job_id}; try again later")
        job.watchers += 1
        try:
            async for state in job.states():
                yield state
        finally:
            job.watchers -= 1

    def _get(self, job_id: str) -> Job:
        try:
            return self._jobs[job_id]
        except KeyError:
            raise NotFoundError(f"no job {job_id[:64]!r} is in hand; it may have ended") from None
