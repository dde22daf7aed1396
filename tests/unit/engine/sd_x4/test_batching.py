"""Jobs share steps: who joins when, beside whom, and in what order changes nothing but rounding, or nothing at all.

Not here: that what they get is the stock pipeline's picture (`test_matrix`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fourfold.engine.base import EngineEvent, EngineJob, JobDone, Progress
from fourfold.engine.sd_x4 import StableDiffusionX4Engine
from fourfold.testing.sd_x4_stock import job, picture, pixels, run, upscale

Make = Callable[..., StableDiffusionX4Engine]

# Every setting differs; "d" asks for no emphasis, so it can never share a call with the others.
JOBS: Mapping[str, EngineJob] = {
    "a": job("a", picture(seed=1), prompt="a white cat", seed=0, steps=2, noise_level=0),
    "b": job("b", picture(seed=2), prompt="", seed=1, steps=3, guidance_scale=4.5),
    "c": job("c", picture(seed=3), prompt="white", seed=9, steps=1, noise_level=350),
    "d": job("d", picture(seed=4), prompt="cat", seed=5, steps=2, guidance_scale=1.0),
}


@pytest.fixture(scope="module")
def strict(make_engine: Make) -> StableDiffusionX4Engine:
    return make_engine(rows=(2,))


@pytest.fixture(scope="module")
def alone(strict: StableDiffusionX4Engine) -> Mapping[str, Any]:
    """Each job's picture when nothing else runs."""
    return {name: upscale(strict, each) for name, each in JOBS.items()}


def run_staggered(engine: StableDiffusionX4Engine, arrivals: list[tuple[str, int]]) -> list[EngineEvent]:
    """Run jobs that each arrive some steps after the one before."""
    events: list[EngineEvent] = []
    for name, steps_later in arrivals:
        for _ in range(steps_later):
            events += engine.step()
        engine.admit(JOBS[name])
    return [*events, *run(engine)]


orders = st.permutations(list(JOBS)).flatmap(
    lambda names: st.tuples(*(st.tuples(st.just(name), st.integers(0, 7)) for name in names)).map(list)
)


@given(arrivals=orders)
@settings(max_examples=3, suppress_health_check=list(HealthCheck))
def test_strict_pictures_are_the_same_bytes_in_any_company(
    strict: StableDiffusionX4Engine, alone: Mapping[str, Any], arrivals: list[tuple[str, int]]
) -> None:
    """With one batch size, order, delays and neighbours do not change a single bit."""
    events = run_staggered(strict, arrivals)

    for name, image in alone.items():
        assert np.array_equal(pixels(events, name), image)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(strict: StableDiffusionX4Engine) -> None:
    first, again, other = (upscale(strict, job(seed=seed)) for seed in (0, 0, 1))

    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_batch_is_one_call_of_the_network(make_engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three jobs of 2 steps in batches of 4 take two calls, not six."""
    engine = make_engine(rows=(4,))
    calls = []
    original = engine._predict
    monkeypatch.setattr(engine, "_predict", lambda rows, **how: calls.append(len(rows)) or original(rows, **how))

    run(engine, *(job(name, steps=2, seed=i) for i, name in enumerate("abc")))

    assert calls == [3, 3]


def test_progress_counts_every_step_of_its_own_job(strict: StableDiffusionX4Engine) -> None:
    """Each job's progress rises by one to a total that never changes, and ends with JobDone."""
    events = run(strict, *JOBS.values())

    for name in JOBS:
        own = [event for event in events if isinstance(event, Progress) and event.job_id == name]
        assert len({event.total for event in own}) == 1
        assert [event.done for event in own] == list(range(1, own[0].total + 1))
        assert any(isinstance(event, JobDone) and event.job_id == name for event in events)


def test_a_small_job_is_not_starved_by_a_large_one(make_engine: Make) -> None:
    """A job of 64 x 64 that comes second ends before a job of four times its pixels is half done."""
    engine = make_engine()
    engine.admit(job("large", picture(128, 128), steps=8))
    engine.step()
    events: list[EngineEvent] = []
    engine.admit(job("small", steps=2))
    while not any(isinstance(event, JobDone) for event in events):
        events += engine.step()

    assert isinstance(events[-1], JobDone) and events[-1].job_id == "small"
    large = [event for event in events if isinstance(event, Progress) and event.job_id == "large"]
    assert len(large) <= 5
    engine.cancel("large")


@pytest.mark.slow
def test_many_small_jobs_do_not_starve_a_large_one(make_engine: Make) -> None:
    """While there is always a small one, the large one has half of the work: it ends beside three or four of them."""
    engine = make_engine()
    engine.admit(job("large", picture(128, 64), steps=2, guidance_scale=1.0))
    events: list[EngineEvent] = []
    smalls = 0
    while not any(isinstance(event, JobDone) and event.job_id == "large" for event in events):
        if not any(running.job.job_id == f"small{smalls}" for running in engine._running):
            smalls += 1
            assert smalls <= 4
            engine.admit(job(f"small{smalls}", steps=1, guidance_scale=1.0))
        events = engine.step()
    engine.cancel(f"small{smalls}")


def test_a_cancelled_job_is_gone_at_the_next_step_and_its_neighbour_unchanged(
    strict: StableDiffusionX4Engine, alone: Mapping[str, Any]
) -> None:
    strict.admit(JOBS["a"])
    strict.admit(JOBS["b"])
    strict.step()
    strict.cancel("a")
    strict.cancel("nobody")
    events = run(strict)

    assert {event.job_id for event in events} == {"b"}
    assert np.array_equal(pixels(events, "b"), alone["b"])


def test_a_job_cancelled_while_its_step_runs_says_nothing_more(
    strict: StableDiffusionX4Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = strict._predict

    def cancelling(rows: Any, **how: Any) -> Any:
        strict.cancel("a")
        return original(rows, **how)

    monkeypatch.setattr(strict, "_predict", cancelling)
    strict.admit(JOBS["a"])

    assert strict.step() == []
    assert not strict.busy


def test_a_decoding_job_can_be_cancelled(strict: StableDiffusionX4Engine) -> None:
    strict.admit(JOBS["c"])
    strict.step()
    strict.step()
    strict.cancel("c")

    assert not strict.busy
    assert strict.step() == []


def test_an_id_in_use_is_refused(strict: StableDiffusionX4Engine) -> None:
    strict.admit(JOBS["a"])
    with pytest.raises(ValueError, match="already admitted"):
        strict.admit(JOBS["a"])
    strict.cancel("a")
