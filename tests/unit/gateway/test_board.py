"""Open jobs."""

import asyncio

import pytest

from fourfold.errors import (
    CancelledByClientError,
    DeadlineExceededError,
    EngineCrashedError,
    QueueFullError,
    ShuttingDownError,
)
from fourfold.gateway.board import JobBoard
from fourfold.gateway.jobs import JobState
from fourfold.protocol.units import Pixels, Wei
from fourfold.telemetry import Metrics
from fourfold.testing.manual_clock import ManualClock


def board(max_jobs: int = 2) -> tuple[JobBoard, Metrics]:
    metrics = Metrics("gateway")
    return JobBoard(max_jobs=max_jobs, metrics=metrics, clock=ManualClock()), metrics


async def test_a_block_that_ends_well_is_a_job_that_succeeded() -> None:
    """Pixels and fee of a success are counted."""
    jobs, metrics = board()
    with jobs.open("a") as job:
        job.to(JobState.RUNNING, model_id="m")
        job.input_pixels, job.fee = Pixels(100), Wei(7)
        assert [j.job_id for j in jobs.jobs()] == ["a"]

    assert job.job.state is JobState.SUCCEEDED
    assert jobs.jobs() == []
    text = metrics.exposition().decode()
    assert 'fourfold_input_pixels_total{model_id="m",role="gateway"} 100.0' in text
    assert 'fourfold_fees_wei_total{model_id="m",role="gateway"} 7.0' in text
    assert 'fourfold_jobs_in_flight{role="gateway"} 0.0' in text


@pytest.mark.parametrize(
    ("error", "state", "code"),
    [
        (EngineCrashedError("x"), JobState.FAILED, "engine_crashed"),
        (DeadlineExceededError("x"), JobState.EXPIRED, "deadline_exceeded"),
        (CancelledByClientError("x"), JobState.CANCELLED, None),
        (asyncio.CancelledError(), JobState.CANCELLED, None),
        (RuntimeError("a bug"), JobState.FAILED, "internal"),
    ],
)
@pytest.mark.parametrize("was_running", [True, False])
async def test_how_a_block_fails_is_how_the_job_ends(
    error: BaseException, state: JobState, code: str | None, was_running: bool
) -> None:
    """Every way out of the block is an end of the job, from either open state."""
    jobs, _ = board()
    with pytest.raises(type(error)), jobs.open("a") as job:
        if was_running:
            job.to(JobState.RUNNING)
        raise error

    assert (job.job.state, job.job.error_code) == (state, code)
    assert jobs.jobs() == []


async def test_there_is_a_limit() -> None:
    """One job too many is refused and leaves no trace."""
    jobs, _ = board(max_jobs=1)
    with jobs.open("a") as job:
        with pytest.raises(QueueFullError), jobs.open("b"):
            raise AssertionError
        assert len(jobs.jobs()) == 1
        job.to(JobState.RUNNING)
    with jobs.open("c") as job:
        job.to(JobState.RUNNING)


async def test_a_drain_waits_for_the_open_jobs() -> None:
    """And takes no new ones."""
    jobs, _ = board()
    with jobs.open("a") as job:
        job.to(JobState.RUNNING)
        drain = asyncio.create_task(jobs.drain(10.0))
        await asyncio.sleep(0)
        assert jobs.is_draining and not drain.done()
        with pytest.raises(ShuttingDownError), jobs.open("b"):
            raise AssertionError

    assert await drain is True


async def test_a_drain_ends_in_time() -> None:
    """A job that outlives the drain is ended with an error for its client, and its task goes on to answer."""
    jobs, _ = board()

    async def answer() -> str:
        try:
            with jobs.open("a") as job:
                job.to(JobState.RUNNING)
                await asyncio.Event().wait()
        except ShuttingDownError as exc:
            await asyncio.sleep(0)  # no second cancellation
            return exc.code
        raise AssertionError

    answering = asyncio.create_task(answer())
    await asyncio.sleep(0)

    assert await jobs.drain(0.01) is False
    assert await answering == "shutting_down"
    assert jobs.jobs() == []
