"""When a model that could not be had is tried again, by a stand-in for the device's models: nothing loads here."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fourfold.engine import registry
from fourfold.errors import FourfoldError, ModelUnavailableError, OutOfMemoryError
from fourfold.processes.child import ChildDiedError
from fourfold.worker import upkeep
from fourfold.worker.models import DeviceModels
from fourfold.worker.upkeep import Upkeep


class Models:
    """What an upkeep sees of a device's models; *faults* are what the next loads meet."""

    def __init__(self) -> None:
        self.failures: dict[str, FourfoldError] = {}
        self.loaded: list[str] = []
        self.harmful: set[str] = set()
        self.faults: list[Exception] = []
        self.tries = 0
        self.room = True
        self.on_failure: Callable[[str], None] = lambda _: None

    def mark(self, model_id: str, failure: FourfoldError) -> None:
        self.failures[model_id] = failure
        self.on_failure(model_id)

    def absolve(self, model_id: str) -> None:
        self.failures.pop(model_id, None)

    def is_harmful(self, model_id: str) -> bool:
        return model_id in self.harmful

    def never_fits(self, _: str) -> None:
        return None

    def has_room_for(self, _: str) -> bool:
        return self.room

    @asynccontextmanager
    async def claim(self, _child: Any, model_id: str, _size: None) -> AsyncIterator[None]:
        self.tries += 1
        if self.faults:
            fault = self.faults.pop(0)
            if isinstance(fault, FourfoldError):
                self.mark(model_id, fault)
            raise fault
        self.loaded.append(model_id)
        self.absolve(model_id)
        yield


class Bench:
    """An upkeep with what it is given."""

    def __init__(self, *, warm: tuple[str, ...] = ()) -> None:
        self.models = Models()
        self.missing: dict[str, str] = {}
        self.is_quiet = True
        self.child_faults: list[Exception] = []
        models: Any = self.models
        self.upkeep = Upkeep(
            models,
            ("a", "b"),
            warm=warm,
            have_child=self._have_child,
            is_quiet=lambda: self.is_quiet,
            why_not_loadable=self.missing.get,
        )
        self.models.on_failure = self.upkeep.tend

    async def _have_child(self) -> Any:
        if self.child_faults:
            raise self.child_faults.pop(0)

    async def until(self, claim: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not claim():
                await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(upkeep, "_QUIET_S", 0.001)
    monkeypatch.setattr(upkeep, "_START_PAUSES_S", (0.001, 0.001))


async def test_a_model_whose_files_are_missing_is_marked_before_anybody_hears_of_it() -> None:
    """And is there, without a job, once they are."""
    bench = Bench()
    bench.missing["a"] = "no weights"
    await bench.upkeep.start()
    assert [str(why) for why in bench.models.failures.values()] == ["no weights"]
    assert bench.models.tries == 0

    del bench.missing["a"]
    await bench.until(lambda: not bench.models.failures)
    await bench.upkeep.close()
    assert bench.models.loaded == ["a"]


async def test_a_warm_model_is_tried_until_it_comes() -> None:
    """Whatever it meets; an on-demand one is not loaded for nothing."""
    bench = Bench(warm=("b",))
    bench.models.faults = [ChildDiedError("x", 1), TimeoutError(), OutOfMemoryError("x"), ModelUnavailableError("x")]
    await bench.upkeep.start()
    assert bench.upkeep.is_loading
    await bench.until(lambda: bench.models.loaded == ["b"])
    await bench.until(lambda: not bench.upkeep.is_loading)
    bench.models.loaded.clear()  # it left for another model, and nothing is to be waited for
    assert not bench.upkeep.is_loading
    await bench.upkeep.close()

    assert (bench.models.tries, bench.models.failures) == (5, {})


async def test_without_a_process_no_model_can_be_had() -> None:
    """At the start or after a death; two failures say nothing, and what follows is tried again and again."""
    bench = Bench()
    bench.child_faults = [ChildDiedError("exited with status 1", 1), TimeoutError()]
    await bench.upkeep.start()
    await bench.until(lambda: not bench.upkeep._is_tended(""))
    assert bench.models.failures == {}

    bench.child_faults = [ChildDiedError("exited with status 1", 1)] * 6
    bench.upkeep.child_died()
    await bench.until(lambda: set(bench.models.failures) == {"a", "b"})
    assert "does not start: exited with status 1" in str(bench.models.failures["a"])
    await bench.until(lambda: not bench.models.failures)
    await bench.upkeep.close()


async def test_no_model_leaves_for_a_trial() -> None:
    """Where there is no room, the next job is the trial; a warm model has a right to its place."""
    bench = Bench(warm=("b",))
    bench.models.room = False
    await bench.upkeep.start()
    await bench.until(lambda: bench.models.loaded == ["b"])
    bench.models.mark("a", ModelUnavailableError("damaged"))
    await bench.until(lambda: not bench.models.failures)
    await bench.upkeep.close()

    assert bench.models.loaded == ["b"]


async def test_a_load_that_may_kill_waits_until_no_job_is_there() -> None:
    bench = Bench()
    bench.is_quiet = False
    bench.models.harmful.add("a")
    await bench.upkeep.start()
    bench.models.mark("a", ModelUnavailableError("killed"))
    await asyncio.sleep(0.02)
    assert bench.models.tries == 0
    bench.is_quiet = True
    await bench.until(lambda: bench.models.loaded == ["a"])

    await bench.upkeep.close()
    bench.upkeep.tend("b")  # too late for anything
    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("bring")] == []


def test_pauses_grow_to_minutes_and_leave_a_long_load_its_rest() -> None:
    bench = Bench()
    pauses = [bench.upkeep._longer_pause_s("a", 0.0) for _ in range(20)]

    assert pauses == sorted(pauses) and (pauses[0], pauses[-1]) == (upkeep.FIRST_PAUSE_S, upkeep.LAST_PAUSE_S)
    assert bench.upkeep._longer_pause_s("b", 20.0) == 100.0


def test_a_model_that_never_fits_is_known_by_its_card() -> None:
    """The smallest picture decides, not the usual tile."""
    network = "fourfold/realesr-animevideov3"
    fits = {}
    for budget in (140_000_000, 160_000_000):
        models = DeviceModels(
            {network: registry.card(network)},
            warm=(),
            budget_bytes=budget,
            load_timeout_s=1,
            on_stuck=lambda: None,
            on_failure=lambda _: None,
        )
        fits[budget] = models.never_fits(network) is None

    assert fits == {140_000_000: False, 160_000_000: True}
