"""The jobs that are open now: how many there may be, what became of each, and the drain at the end."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from fourfold.errors import (
    CancelledByClientError,
    DeadlineExceededError,
    FourfoldError,
    QueueFullError,
    ShuttingDownError,
)
from fourfold.gateway.jobs import Job, JobState, transition
from fourfold.gateway.ports import Clock, SystemClock
from fourfold.protocol.units import Pixels, Wei
from fourfold.telemetry import Metrics

log = logging.getLogger(__name__)

#: For the answers to jobs that the end of a drain cut short.
_LAST_WORDS_S: Final = 2.0


class OpenJob:
    """One open job: the current :class:`Job` and what is to be counted at its end."""

    def __init__(self, job: Job, clock: Clock) -> None:
        self.job = job
        self.input_pixels = Pixels(0)
        self.fee = Wei(0)
        self.is_given_up = False  #: its cancellation is ours, at the end of a drain, and not its client's
        self._clock = clock
        self._task: asyncio.Task[Any] | None = asyncio.current_task()

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.job.job_id

    def give_up(self) -> None:
        """End the job where it stands; its client is told that this gateway shuts down."""
        assert self._task is not None, "a job is opened by the task that answers for it"
        self.is_given_up = True
        self._task.cancel()

    def take_back_cancellation(self) -> None:
        """Let the task go on, with an answer, after :meth:`give_up`."""
        assert self._task is not None
        self._task.uncancel()

    def to(self, state: JobState, *, model_id: str | None = None, error_code: str | None = None) -> None:
        """Move the job along an edge of the table."""
        self.job = transition(self.job, state, at_s=self._clock.monotonic(), model_id=model_id, error_code=error_code)


class JobBoard:
    """Opens jobs while there is room and nobody drains."""

    def __init__(self, *, max_jobs: int, metrics: Metrics, clock: Clock | None = None) -> None:
        self._max_jobs = max_jobs
        self._metrics = metrics
        self._clock = clock or SystemClock()
        self._open: dict[str, OpenJob] = {}
        self._is_draining = False
        self._emptied = asyncio.Event()
        self._emptied.set()
        metrics.watch_jobs(
            in_flight=lambda: len(self._open),
            queued=lambda: sum(job.state is JobState.QUEUED for job in self.jobs()),
        )

    @property
    def is_draining(self) -> bool:
        """Whether no new jobs are taken."""
        return self._is_draining

    def jobs(self) -> list[Job]:
        """Return the open jobs, oldest first."""
        return [open_job.job for open_job in self._open.values()]

    @contextmanager
    def open(self, job_id: str) -> Iterator[OpenJob]:
        """Hold a job open inside the block; how the block ends decides how the job ends.

        Raises: ShuttingDownError, QueueFullError: it is not opened. ShuttingDownError: a drain could not wait for it.
        """
        if self._is_draining:
            raise ShuttingDownError("this gateway is shutting down; send the request again, to another if you can")
        if len(self._open) >= self._max_jobs:
            raise QueueFullError(f"this gateway has its {self._max_jobs} jobs; try again in a moment")
        open_job = OpenJob(Job(job_id, self._clock.monotonic()), self._clock)
        self._open[job_id] = open_job
        self._emptied.clear()
        try:
            yield open_job
        except BaseException as exc:
            if isinstance(exc, asyncio.CancelledError) and open_job.is_given_up:
                open_job.take_back_cancellation()
                error = ShuttingDownError(
                    "this gateway shuts down and could not finish in time; send the request again"
                )
                _end_by(open_job, error)
                raise error from None
            _end_by(open_job, exc)
            raise
        else:
            open_job.to(JobState.SUCCEEDED)
        finally:
            del self._open[job_id]
            if not self._open:
                self._emptied.set()
            self._record(open_job)

    async def drain(self, timeout_s: float) -> bool:
        """Take no new jobs; return whether the open ones ended within *timeout_s*. Those that did not are given up."""
        self._is_draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._emptied.wait()
        except TimeoutError:
            log.warning("drain_gave_up", extra={"jobs": len(self._open), "drain_s": timeout_s})
            for open_job in self._open.values():
                open_job.give_up()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_S):
                    await self._emptied.wait()
            return False
        return True

    def _record(self, open_job: OpenJob) -> None:
        """Log and count the end of a job."""
        job = open_job.job
        model_id = job.model_id or ""
        facts = {
            "job_id": job.job_id,
            "model_id": model_id,
            "state": job.state.value,
            "attempts": job.attempts,
            "input_pixels": open_job.input_pixels,
            "seconds": round(job.seconds or 0.0, 3),
        }
        if job.state is JobState.SUCCEEDED:
            log.info("job_done", extra={**facts, "fee_wei": open_job.fee})
        else:
            log.info("job_ended", extra={**facts, "code": job.error_code})
        self._metrics.job_ended(
            job.state.value,
            model_id=model_id,
            input_pixels=open_job.input_pixels,
            fee_wei=open_job.fee,
            seconds=job.seconds or 0.0,
        )


def _end_by(open_job: OpenJob, exc: BaseException) -> None:
    """Put the job into the end that *exc* stands for."""
    if isinstance(exc, asyncio.CancelledError | CancelledByClientError):
        open_job.to(JobState.CANCELLED)
    elif isinstance(exc, DeadlineExceededError):
        open_job.to(JobState.EXPIRED, error_code=exc.code)
    else:
        code = exc.code if isinstance(exc, FourfoldError) else FourfoldError.code
        open_job.to(JobState.FAILED, error_code=code)
