"""Jobs in hand: their states, those who watch, and cancellation."""

import asyncio
from typing import Any

import pytest

from fourfold.errors import CancelledByClientError, EngineCrashedError, NotFoundError
from fourfold.orchestrator.jobs import Jobs, JobState


def open_job(jobs: Jobs, job_id: str = "j") -> Any:
    """Open a job that the running test stands for."""
    task = asyncio.current_task()
    assert task is not None
    return jobs.open(job_id, task)


async def watched(jobs: Jobs, job_id: str = "j") -> list[dict[str, Any]]:
    """Return everything a watcher sees, to the end."""
    return [state async for state in jobs.watch(job_id)]


async def test_a_watcher_sees_each_state_to_the_last() -> None:
    """From where the job stands when it begins to look."""
    jobs = Jobs()
    with open_job(jobs) as job:
        watcher = asyncio.create_task(watched(jobs))
        await asyncio.sleep(0)
        assert job.watched.is_set()
        job.tell(JobState.RUNNING)
        await asyncio.sleep(0)
        job.progress(1, 4)
        await asyncio.sleep(0)

    assert await watcher == [
        {"state": "queued"},
        {"state": "running"},
        {"state": "running", "done": 1, "total": 4},
        {"state": "succeeded"},
    ]
    assert len(jobs) == 0


async def test_a_slow_watcher_misses_steps_but_never_the_end() -> None:
    """Nothing is kept for those who do not read."""
    jobs = Jobs()
    with open_job(jobs) as job:
        states = jobs.watch("j")
        first = await anext(states)
        for done in range(1000):
            job.progress(done, 1000)

    assert [first, *[state async for state in states]] == [{"state": "queued"}, {"state": "succeeded"}]


@pytest.mark.parametrize(
    ("failure", "state"),
    [
        (EngineCrashedError("x"), JobState.FAILED),
        (RuntimeError(), JobState.FAILED),
        (CancelledByClientError("left"), JobState.CANCELLED),
        (asyncio.CancelledError(), JobState.CANCELLED),
    ],
)
async def test_how_it_ends_is_how_it_ended(failure: BaseException, state: JobState) -> None:
    """And it is in hand no longer."""
    jobs = Jobs()
    with pytest.raises(type(failure)), open_job(jobs) as job:
        raise failure

    assert (job.state, len(jobs)) == (state, 0)


async def test_a_job_that_ran_stays_known_as_one_that_ran() -> None:
    """Also after it failed: a Livepeer gateway is told apart what a worker said."""
    jobs = Jobs()
    with open_job(jobs, "a") as job:
        pass
    with open_job(jobs, "b") as other:
        other.tell(JobState.RUNNING)

    assert (job.has_run, other.has_run) == (False, True)


async def test_cancelling_reaches_the_task() -> None:
    """By the id alone."""
    jobs = Jobs()

    async def work() -> None:
        with open_job(jobs):
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    jobs.cancel("j")
    with pytest.raises(asyncio.CancelledError):
        await task

    assert len(jobs) == 0


async def test_an_unknown_job_is_not_found() -> None:
    """For cancelling and for watching."""
    with pytest.raises(NotFoundError, match="no job 'x' is in hand"):
        Jobs().cancel("x")
    with pytest.raises(NotFoundError):
        await anext(Jobs().watch("x"))


async def test_a_job_of_the_same_id_takes_the_place_of_the_first() -> None:
    """A gateway that lost its connection asks again; its first job is of no use to anybody."""
    jobs = Jobs()
    forever = asyncio.create_task(asyncio.Event().wait())
    with jobs.open("j", forever) as first, open_job(jobs) as second:
        await asyncio.gather(forever, return_exceptions=True)
        assert forever.cancelled()
        assert first is not second

    assert len(jobs) == 0


async def test_the_first_of_two_leaves_the_second_in_hand() -> None:
    """Whichever ends first."""
    jobs = Jobs()
    forever = asyncio.create_task(asyncio.Event().wait())
    first = jobs.open("j", forever)
    first.__enter__()
    with open_job(jobs):
        first.__exit__(None, None, None)
        assert len(jobs) == 1
    await asyncio.gather(forever, return_exceptions=True)


async def test_a_job_has_so_many_watchers_and_no_more() -> None:
    """Their number is bounded; one that leaves makes room."""
    jobs = Jobs()
    with open_job(jobs):
        watchers = [jobs.watch("j") for _ in range(17)]
        for watcher in watchers[:16]:
            await anext(watcher)
        with pytest.raises(NotFoundError, match="16 already watch"):
            await anext(watchers[16])
        await watchers[0].aclose()
        assert await anext(jobs.watch("j")) == {"state": "queued"}
        for watcher in watchers[1:]:
            await watcher.aclose()
