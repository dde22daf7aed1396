"""A job's life, driven at random."""

import itertools

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fourfold.gateway.jobs import ENDED, LEGAL, IllegalTransitionError, Job, JobState, transition

NEEDS_CODE = {JobState.FAILED, JobState.EXPIRED}


class JobLife(RuleBasedStateMachine):
    """Tries every edge from wherever the job is."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 10.0
        self.runs = 0
        self.job = Job("a" * 32, self.now_s)

    @rule(seconds=st.floats(0, 1000))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(data=st.data())
    def legal_step(self, data: st.DataObject) -> None:
        if not LEGAL[self.job.state]:
            return
        state = data.draw(st.sampled_from(sorted(LEGAL[self.job.state], key=lambda s: s.value)))
        code = "engine_crashed" if state in NEEDS_CODE else None
        self.job = transition(self.job, state, at_s=self.now_s, error_code=code)
        self.runs += state is JobState.RUNNING

    @rule(state=st.sampled_from(JobState))
    def illegal_step(self, state: JobState) -> None:
        if state in LEGAL[self.job.state]:
            return
        before = self.job
        with pytest.raises(IllegalTransitionError):
            transition(self.job, state, at_s=self.now_s, error_code="x" if state in NEEDS_CODE else None)
        assert before == self.job

    @precondition(lambda self: self.job.has_ended)
    @rule(state=st.sampled_from(JobState))
    def nothing_leaves_an_end(self, state: JobState) -> None:
        with pytest.raises(IllegalTransitionError):
            transition(self.job, state, at_s=self.now_s)

    @invariant()
    def the_end_is_dated_exactly_in_the_ends(self) -> None:
        assert (self.job.ended_at_s is not None) == (self.job.state in ENDED)
        assert self.job.seconds is None or self.job.seconds >= 0

    @invariant()
    def a_code_stands_exactly_where_something_went_wrong(self) -> None:
        assert (self.job.error_code is not None) == (self.job.state in NEEDS_CODE)

    @invariant()
    def attempts_are_the_times_it_ran(self) -> None:
        assert self.runs == self.job.attempts


TestJobLife = JobLife.TestCase


def test_every_state_is_in_the_table_and_can_be_reached() -> None:
    """The table is whole: each state has a row, and each can come to pass."""
    reached = set(itertools.chain.from_iterable(LEGAL.values())) | {JobState.QUEUED}

    assert set(JobState) == set(LEGAL) == reached


@pytest.mark.parametrize("state", [JobState.RUNNING, JobState.CANCELLED])
def test_a_code_is_refused_where_nothing_went_wrong(state: JobState) -> None:
    """An error code goes with FAILED and EXPIRED only."""
    with pytest.raises(ValueError, match="does not go with"):
        transition(Job("j", 0.0), state, at_s=1.0, error_code="internal")


def test_a_failure_needs_its_code() -> None:
    """FAILED without a code is a bug of the caller."""
    with pytest.raises(ValueError, match="does not go with FAILED"):
        transition(Job("j", 0.0), JobState.FAILED, at_s=1.0)


def test_the_model_stays_known() -> None:
    """A later transition that names no model keeps the earlier one."""
    job = transition(Job("j", 0.0), JobState.RUNNING, at_s=1.0, model_id="a/b")

    assert transition(job, JobState.SUCCEEDED, at_s=2.0).model_id == "a/b"
