"""What a step costs beside the network's work: no waiting for the device, no copies, and memory within its budget."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fourfold.engine.base import JobFailed, MemoryRanOut
from fourfold.engine.sd_x4 import StableDiffusionX4Engine
from fourfold.errors import OutOfMemoryError
from fourfold.testing.sd_x4_stock import Stock, job, notes, picture, pixels, run, upscale

Make = Callable[..., StableDiffusionX4Engine]

#: On a GPU each of them makes the host wait for the device.
WAITING = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "allclose", "masked_select", "unique")


class Calls(TorchDispatchMode):
    """Counts the operations below it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("guidance", [1.0, 9.0])
def test_a_denoising_step_waits_for_nothing(engine: StableDiffusionX4Engine, guidance: float) -> None:
    """After its first one a step has no operation that would make the host wait for a GPU."""
    engine.admit(job(steps=4, guidance_scale=guidance))
    engine.step()
    with Calls() as calls:
        engine.step()
    engine.cancel("a")

    assert calls.names["convolution"] + calls.names["conv2d"] > 40
    assert {name: calls.names[name] for name in WAITING if calls.names[name]} == {}


def test_a_step_takes_fewer_operations_than_the_stock_pipelines(engine: StableDiffusionX4Engine, stock: Stock) -> None:
    """Launching them is what a small picture spends its time on."""
    counts = []
    for steps in (2, 3):
        with Calls() as calls:
            stock.latents(job(steps=steps))
        counts.append(sum(calls.names.values()))
    engine.admit(job(steps=3))
    engine.step()
    with Calls() as ours:
        engine.step()
    engine.cancel("a")

    assert sum(ours.names.values()) <= 0.9 * (counts[1] - counts[0])


def test_torchs_default_type_changes_no_picture(engine: StableDiffusionX4Engine) -> None:
    """Who loads a model in another thread sets it, for all threads."""
    expected = upscale(engine, job(steps=1))
    torch.set_default_dtype(torch.float64)
    try:
        made = upscale(engine, job(steps=1))
    finally:
        torch.set_default_dtype(torch.float32)

    assert np.array_equal(made, expected)


def test_decoding_and_denoising_share_the_memory(make_engine: Make) -> None:
    """Where both do not fit, a half-decoded picture is finished first; where they do, the small job goes on."""
    small, large = job("small", picture(64, 64), steps=8), job("large", picture(128, 128), steps=1)
    room = make_engine().card.peak_bytes(128 * 128)
    for budget, interleaves in ((room + 1000, False), (2 * room, True)):
        engine = make_engine(budget=budget)
        engine.admit(large)
        engine.step()
        engine.step()  # the first layer of its decoding is held
        engine.admit(small)
        (held,) = [running for running in engine._running if running.decoding is not None]
        held.served += 10**9  # it would not be its turn for long
        events = [*engine.step(), *engine.step()]
        assert ("small" in {event.job_id for event in events}) is interleaves
        rest = run(engine)
        assert {event.job_id for event in rest} == {"small", "large"}


def test_only_the_half_that_does_not_fit_fails(make_engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two jobs in one call, the one whose half runs out again; the other gets its picture."""
    engine = make_engine(rows=(1, 2))
    expected = upscale(engine, job("b", seed=1, steps=1))
    original, answers = engine._kernels.eager, iter([False, False, True])

    def full(ways: int, sample: Any, *rest: Any) -> Any:
        if not next(answers, True):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(ways, sample, *rest)

    with monkeypatch.context() as short:
        short.setattr(engine._kernels, "eager", full)
        events = run(engine, job("a", steps=1), job("b", seed=1, steps=1))

    counted = [(event.job_id, event.goes_on) for event in events if isinstance(event, MemoryRanOut)]
    assert counted == [("a", True), ("b", True), ("a", False)]
    (failed,) = [event for event in events if isinstance(event, JobFailed)]
    assert failed.job_id == "a" and isinstance(failed.error, OutOfMemoryError)
    assert np.abs(pixels(events, "b").astype(int) - expected.astype(int)).max() <= 1
    assert notes(events, "b")["out_of_memory_retries"] == 1
    assert not engine.busy
