"""A job's attempts come to an end, whatever goes wrong."""

from hypothesis import given
from hypothesis import strategies as st

from fourfold.errors import Retry, walk
from fourfold.gateway.attempts import MOST_BREAKS, MOST_CRASHES, MOST_FAILURES, MOST_RENEWALS, Attempts

ERRORS = sorted({cls for cls in walk() if cls.retry is not Retry.NEVER}, key=lambda cls: cls.__name__)
names = st.sampled_from(["a", "b", "c"])


@given(steps=st.lists(st.tuples(names, st.sampled_from(ERRORS)), max_size=300), limit_s=st.floats(0.01, 100))
def test_every_job_ends(steps: list[tuple[str, type]], limit_s: float) -> None:
    """Each failure either ends the job, is followed by an untried orchestrator, or by a pause; pauses are bounded."""
    attempts = Attempts()
    waited_s = 0.0
    for name, cls in steps:
        if name in attempts.tried:
            pause_s = attempts.next_pause_s(limit_s=limit_s)
            if pause_s is None:
                break
            assert 0 < pause_s <= 4.0
            waited_s += pause_s
        attempts.note(name, cls("x"))
        if attempts.is_over:
            break
    assert waited_s <= limit_s * 1.000001
    assert attempts.failures <= MOST_FAILURES
    assert attempts.breaks <= MOST_BREAKS
    assert len(attempts.crashed) <= MOST_CRASHES
    assert not attempts.is_input_suspect or len(set(attempts.crashed)) > 1


@given(st.sampled_from([cls for cls in ERRORS if cls.retry is Retry.SAME]))
def test_the_same_orchestrator_is_asked_again_only_so_often(cls: type) -> None:
    """Then it counts as tried like any other."""
    attempts = Attempts()
    for _ in range(MOST_RENEWALS):
        attempts.note("a", cls("x"))
        assert attempts.wants_fresh_token
        assert attempts.tried == set()
    attempts.note("a", cls("x"))

    assert attempts.tried == {"a"}


@given(st.sampled_from([cls for cls in walk() if cls.retry is Retry.NEVER]))
def test_never_is_the_end(cls: type) -> None:
    """At once."""
    attempts = Attempts()
    attempts.note("a", cls("x"))

    assert attempts.is_over


def test_pauses_grow_and_fill_the_wait() -> None:
    """To four seconds each, and not a moment longer than allowed."""
    attempts = Attempts()
    pauses = []
    while (pause_s := attempts.next_pause_s(limit_s=10.0)) is not None:
        pauses.append(pause_s)

    assert pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 2.25]
