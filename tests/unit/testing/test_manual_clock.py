"""A clock that goes when it is told to."""

import asyncio

from fourfold.testing.manual_clock import ManualClock
from fourfold.testing.pictures import png, png_size


async def test_sleepers_wake_in_order() -> None:
    """Each at its time, none before."""
    clock = ManualClock()
    woken: list[float] = []

    async def sleep(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    tasks = [asyncio.create_task(sleep(seconds)) for seconds in (3.0, 1.0, 2.0)]
    await asyncio.sleep(0)
    clock.advance(0.5)
    await asyncio.sleep(0)
    assert woken == []
    clock.advance(1.5)
    await asyncio.gather(*tasks[1:])
    assert woken == [1.0, 2.0]
    clock.advance(1.0)
    await asyncio.gather(*tasks)

    assert woken == [1.0, 2.0, 3.0]
    assert clock.monotonic() == 1003.0
    assert clock.time() == 1_700_000_003.0


async def test_by_itself_it_only_counts() -> None:
    """Code that waits runs without waiting."""
    clock = ManualClock(auto=True)
    await clock.sleep(100.0)

    assert (clock.monotonic(), clock.sleeps) == (1100.0, [100.0])


async def test_a_sleeper_that_was_cancelled_is_passed_over() -> None:
    """Waking it would be an error."""
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(1.0))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    clock.advance(2.0)


def test_a_picture_has_its_size() -> None:
    """By its header."""
    assert png_size(png(7, 5)) == (7, 5)
