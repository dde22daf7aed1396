"""Taking turns."""

from collections.abc import Generator, Sequence

import numpy as np
import pytest

from fourfold.engine.base import JobDone, JobFailed, Progress, RegionDone
from fourfold.engine.turns import Turns
from fourfold.errors import OutOfMemoryError, WorkerFailedError

Steps = Generator[Sequence[RegionDone], None, None]


def region(job_id: str) -> RegionDone:
    return RegionDone(job_id, 0, 0, np.zeros((1, 1, 3), np.uint8))


def tiles(job_id: str, taken: list[str], *, count: int, steps: int = 1) -> Steps:
    """Yield *count* tiles of *steps* steps; note each step in *taken*."""
    for _ in range(count):
        for step in range(steps):
            taken.append(job_id)
            yield [region(job_id)] if step == steps - 1 else []


def drain(turns: Turns) -> list[object]:
    events: list[object] = []
    while turns.busy:
        events.extend(turns.step())
    return events


def test_jobs_take_turns_tile_by_tile() -> None:
    """A small job admitted later is done long before a large one; a tile is never left half-made."""
    turns, taken = Turns(), list[str]()
    turns.admit("large", tiles("large", taken, count=3, steps=2), total=6, notes={})
    turns.admit("small", tiles("small", taken, count=1), total=1, notes={})
    drain(turns)

    assert taken == ["large", "large", "small", "large", "large", "large", "large"]


def test_progress_counts_steps_and_the_end_carries_the_notes() -> None:
    """Regions come before the progress of their step, the end after everything."""
    turns = Turns()
    turns.admit("a", tiles("a", [], count=2), total=2, notes={"tiles": 2})
    events = drain(turns)

    assert [RegionDone, Progress, RegionDone, Progress, JobDone] == [type(event) for event in events]
    assert [Progress("a", 1, 2), Progress("a", 2, 2)] == [event for event in events if isinstance(event, Progress)]
    assert JobDone("a", {"tiles": 2}) == events[-1]


def test_without_jobs_a_step_does_nothing() -> None:
    """The child's loop may step at any time."""
    turns = Turns()

    assert turns.step() == []
    assert not turns.busy


def test_a_failure_ends_its_job_alone() -> None:
    """The other job neither notices nor waits."""

    def failing() -> Steps:
        yield []
        raise WorkerFailedError("broken")

    turns = Turns()
    turns.admit("bad", failing(), total=3, notes={})
    turns.admit("good", tiles("good", [], count=1), total=1, notes={})
    events = drain(turns)

    failed = next(event for event in events if isinstance(event, JobFailed))
    assert (failed.job_id, str(failed.error)) == ("bad", "broken")
    assert JobDone("good") in events


def test_a_machine_without_memory_is_an_error_of_its_own() -> None:
    """Numpy raises MemoryError; the job fails with the code for it."""

    def hungry() -> Steps:
        raise MemoryError
        yield []

    turns = Turns()
    turns.admit("a", hungry(), total=1, notes={})
    (event,) = turns.step()

    assert isinstance(event, JobFailed)
    assert isinstance(event.error, OutOfMemoryError)
    assert not turns.busy


def test_a_bug_is_not_hidden() -> None:
    """What nobody expects ends the process, which its parent reports."""

    def buggy() -> Steps:
        raise ZeroDivisionError
        yield []

    turns = Turns()
    turns.admit("a", buggy(), total=1, notes={})
    with pytest.raises(ZeroDivisionError):
        turns.step()


def test_a_waiting_job_is_forgotten_at_once() -> None:
    """Its work is closed, so that what it holds is freed; nothing is stopped that belongs to another."""
    closed, stopped = list[str](), list[str]()

    def closing() -> Steps:
        try:
            yield []
            yield []
        finally:
            closed.append("a")

    turns = Turns(stop_step=lambda: stopped.append("step"))
    turns.admit("a", closing(), total=2, notes={})
    turns.step()
    turns.cancel("a")

    assert not turns.busy
    assert closed == ["a"]
    assert stopped == []


@pytest.mark.parametrize("ends_by_failure", [True, False])
def test_a_running_step_is_stopped_and_leaves_no_event(ends_by_failure: bool) -> None:
    """However the device answers the stop, by a failure or by finishing after all."""
    stopped = list[str]()

    def cancelled_inside() -> Steps:
        assert not turns.is_step_cancelled
        turns.cancel("a")  # as another thread would, while the device runs
        assert turns.is_step_cancelled
        if ends_by_failure:
            raise WorkerFailedError("stopped")
        yield [region("a")]

    turns = Turns(stop_step=lambda: stopped.append("step"))
    turns.admit("a", cancelled_inside(), total=1, notes={})
    turns.admit("b", tiles("b", [], count=1), total=1, notes={})

    assert turns.step() == []
    assert stopped == ["step"]
    assert not turns.is_step_cancelled
    assert [event.job_id for event in turns.step() if isinstance(event, JobDone)] == ["b"]


def test_cancelling_unknown_jobs_is_fine() -> None:
    """The job may just have ended."""
    turns = Turns(stop_step=lambda: pytest.fail("nothing runs"))
    turns.cancel("nobody")

    assert not turns.busy


def test_an_id_is_admitted_once() -> None:
    """Events name jobs by id."""
    turns = Turns()
    turns.admit("a", tiles("a", [], count=1), total=1, notes={})
    with pytest.raises(ValueError, match="already admitted"):
        turns.admit("a", tiles("a", [], count=1), total=1, notes={})


def test_an_id_may_come_back_after_a_cancellation() -> None:
    """Even while the step of the first is not yet over: it is never taken for the second."""
    turns, taken = Turns(), list[str]()

    def replaced() -> Steps:
        turns.cancel("a")
        turns.admit("a", tiles("second", taken, count=1), total=1, notes={})
        yield [region("a")]

    turns.admit("a", replaced(), total=1, notes={})

    assert turns.step() == []
    assert turns.busy
    assert [RegionDone, Progress, JobDone] == [type(event) for event in turns.step()]
    assert taken == ["second"]


def test_clearing_forgets_everything() -> None:
    """Before an engine is closed."""
    turns = Turns()
    turns.admit("a", tiles("a", [], count=1), total=1, notes={})
    turns.clear()

    assert not turns.busy
    assert turns.step() == []
