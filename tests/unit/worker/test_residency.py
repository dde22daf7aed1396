"""Which models stay and which leave: a pure decision."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourfold.errors import FourfoldError, OutOfMemoryError
from fourfold.worker.residency import Plan, Resident, plan


def resident(model_id: str, size: int, *, warm: bool = False, jobs: int = 0, used: float = 0.0) -> Resident:
    return Resident(model_id, size, warm, jobs, used)


def test_a_resident_model_needs_nothing() -> None:
    """No load, no eviction."""
    made = plan("a", 50, [resident("a", 50), resident("b", 50)], budget_bytes=100)

    assert made == Plan(load=False) and made.is_free


def test_a_model_that_fits_beside_the_others_evicts_nobody() -> None:
    """Room is used before anybody leaves."""
    assert plan("b", 40, [resident("a", 50)], budget_bytes=100) == Plan(load=True, evict=())


def test_the_least_recently_used_idle_model_leaves() -> None:
    """Older first, and no more than needed."""
    residents = [resident("new", 40, used=2.0), resident("old", 40, used=1.0)]

    assert plan("c", 40, residents, budget_bytes=100) == Plan(load=True, evict=("old",))


def test_on_demand_models_leave_before_warm_ones() -> None:
    """Warm is a promise, kept as long as anything else can go."""
    residents = [resident("warm", 40, warm=True, used=1.0), resident("demand", 40, used=2.0)]

    assert plan("c", 40, residents, budget_bytes=100) == Plan(load=True, evict=("demand",))


def test_a_warm_model_leaves_when_nothing_else_can() -> None:
    """A job that is paid for goes before a promise of speed."""
    assert plan("c", 90, [resident("warm", 40, warm=True)], budget_bytes=100).evict == ("warm",)


def test_a_model_with_jobs_never_leaves() -> None:
    """The wanted one waits for it; who would be in time to leave stays until then."""
    made = plan("c", 70, [resident("a", 60, jobs=1), resident("b", 10)], budget_bytes=100)

    assert made == Plan(load=True, evict=("b",), wait_for=("a",))
    assert not made.is_free


def test_idle_models_leave_before_a_busy_one_is_waited_for() -> None:
    """A warm one, too: a job that is there goes before a promise of speed."""
    residents = [resident("busy", 40, jobs=1), resident("warm", 40, warm=True)]

    assert plan("c", 50, residents, budget_bytes=100) == Plan(load=True, evict=("warm",))


def test_a_larger_job_of_a_resident_model_makes_room_as_well() -> None:
    """What counts is the model with the job's pixels, not the model alone."""
    residents = [resident("a", 40, jobs=1), resident("b", 40)]

    assert plan("a", 70, residents, budget_bytes=100) == Plan(load=False, evict=("b",))
    assert plan("a", 60, residents, budget_bytes=100).is_free


def test_a_model_larger_than_the_budget_is_refused() -> None:
    """Waiting would not help."""
    with pytest.raises(OutOfMemoryError, match="memory_bytes"):
        plan("c", 101, [], budget_bytes=100)


@given(
    st.lists(st.tuples(st.integers(1, 60), st.booleans(), st.integers(0, 1), st.floats(0, 9)), max_size=6),
    st.integers(1, 120),
)
def test_a_plan_always_fits_and_never_stops_a_job(rows: list[tuple[int, bool, int, float]], wanted: int) -> None:
    """After any plan the budget holds, and only idle models have left."""
    residents = [Resident(str(i), *row) for i, row in enumerate(rows)]
    try:
        made = plan("wanted", wanted, residents, budget_bytes=100)
    except FourfoldError:
        return

    left = [r for r in residents if r.model_id not in (*made.evict, *made.wait_for)]
    assert sum(r.bytes for r in left) + wanted <= 100
    assert all(r.jobs == 0 for r in residents if r.model_id in made.evict)
    assert all(r.jobs > 0 for r in residents if r.model_id in made.wait_for)
