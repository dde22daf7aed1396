"""Memory on a GPU: what the card says is what is taken, what runs out is tried in less, what is left is given back."""

import gc
import shutil
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the [diffusion] extra")

import torch

from fourfold.engine.base import EngineEvent, JobFailed, MemoryRanOut
from fourfold.engine.sd_x4 import StableDiffusionX4Engine
from fourfold.errors import OutOfMemoryError
from fourfold.testing.sd_x4 import REAL, write_pipe
from fourfold.testing.sd_x4_stock import job, notes, picture, pixels, run, upscale

pytestmark = pytest.mark.gpu

Make = Callable[..., StableDiffusionX4Engine]
GIB = 2**30


@contextmanager
def at_most(reserved_bytes: int) -> Iterator[None]:
    """Let torch have no more of the GPU's memory than this, what it has included."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, reserved_bytes / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def most_reserved(work: Callable[[], Any]) -> int:
    """Return the most that torch had of the GPU's memory while *work* ran, from a start with nothing to spare."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    return int(torch.cuda.max_memory_reserved())


def psnr(made: Any, expected: Any) -> float:
    return 10 * float(np.log10(255**2 / max(1e-9, np.mean((made.astype(float) - expected) ** 2))))


JOBS = [job(name, picture(256, 256, seed=i), seed=i, steps=2) for i, name in enumerate("abcd")]


def first_step(engine: StableDiffusionX4Engine, count: int) -> list[EngineEvent]:
    """Begin *count* jobs of 256 px in one call of the network."""
    for each in JOBS[:count]:
        engine.admit(each)
    return list(engine.step())


def forget(engine: StableDiffusionX4Engine) -> None:
    for each in JOBS:
        engine.cancel(each.job_id)


def to_decoding(engine: StableDiffusionX4Engine) -> None:
    """Bring a job of 128 px to its decoding."""
    engine.admit(job("d", picture(128, 128), steps=1))
    engine.step()


def test_a_step_that_runs_out_is_tried_in_halves_and_one_that_cannot_fit_fails_alone(make_engine: Make) -> None:
    engine = make_engine((1, 2, 4))
    expected = [pixels(run(engine, each), each.job_id) for each in JOBS]
    four = most_reserved(lambda: first_step(engine, 4))
    forget(engine)
    two = most_reserved(lambda: first_step(engine, 2))
    forget(engine)
    gc.collect()
    torch.cuda.empty_cache()
    idle = torch.cuda.memory_reserved()
    assert idle < two < four

    with at_most((two + four) // 2):
        events = first_step(engine, 4)
    ran_out = [(event.job_id, event.goes_on) for event in events if isinstance(event, MemoryRanOut)]
    assert ran_out == [(name, True) for name in "abcd"]
    events += run(engine)
    for each, image in zip(JOBS, expected, strict=True):
        assert notes(events, each.job_id)["out_of_memory_retries"] == 1
        assert psnr(pixels(events, each.job_id), image) >= 40

    with at_most(idle + (two - idle) // 4):
        events = first_step(engine, 4)
    failed = [event for event in events if isinstance(event, JobFailed)]
    assert sorted(event.job_id for event in failed) == list("abcd")
    assert all(isinstance(event.error, OutOfMemoryError) for event in failed)
    del failed, events
    assert psnr(upscale(engine, JOBS[0]), expected[0]) >= 40


def test_a_decode_that_runs_out_is_done_again_in_smaller_parts(
    make_engine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    expected = upscale(engine, job("d", picture(128, 128), steps=1))
    to_decoding(engine)
    whole = most_reserved(lambda: run(engine))
    with monkeypatch.context() as smaller:
        smaller.setattr(engine, "_limits", engine._limits.halved())
        to_decoding(engine)
        halved = most_reserved(lambda: run(engine))
    assert halved < whole

    to_decoding(engine)
    gc.collect()
    with at_most((whole + halved) // 2):
        events = run(engine)

    assert notes(events, "d")["out_of_memory_retries"] == 1
    assert psnr(pixels(events, "d"), expected) >= 40


@pytest.mark.parametrize("steps_later", [1, 3, 8])
def test_a_cancelled_job_gives_its_memory_back(make_engine: Make, steps_later: int) -> None:
    """Between its steps, and half decoded."""
    engine, each = make_engine(), job("a", picture(256, 256), steps=2)
    upscale(engine, each)
    gc.collect()
    before = torch.cuda.memory_allocated()
    engine.admit(each)
    for _ in range(steps_later):
        engine.step()
    assert torch.cuda.memory_allocated() > before
    engine.cancel("a")
    gc.collect()

    assert torch.cuda.memory_allocated() == before


def test_a_closed_engine_gives_its_weights_and_graphs_back(make_engine: Make) -> None:
    """Also what was compiled and recorded."""
    engine, each = make_engine(compiler="inductor"), job(steps=2, guidance_scale=1.0)
    run(engine, each)
    engine._kernels.settle()
    assert notes(run(engine, each))["kernels"] == "compiled"
    weight = weakref.ref(next(engine._modules.unet.parameters()))
    held = torch.cuda.memory_allocated()
    engine.close()
    del engine
    gc.collect()

    assert weight() is None
    assert torch.cuda.memory_allocated() < held


@pytest.fixture(scope="module")
def real_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model of the real widths: 5 GB, removed at once."""
    folder = write_pipe(tmp_path_factory.mktemp("real"), REAL, half=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def real_engine(make_engine: Make, real_folder: Path) -> Iterator[StableDiffusionX4Engine]:
    """An engine of the real widths, with what a card of 24 GiB leaves to models and jobs."""
    if torch.cuda.get_device_properties(0).total_memory < 24 * 10**9:
        pytest.skip("needs 24 GB of GPU memory")
    engine = make_engine((1, 2, 4, 8), folder=real_folder, budget=23 * GIB)
    upscale(engine, job(steps=1))  # what libraries keep for good is no job's
    yield engine
    engine.close()


@pytest.mark.parametrize(("side", "count"), [(128, 8), (512, 1), (1024, 1)])
def test_real_pictures_take_what_the_card_says(real_engine: StableDiffusionX4Engine, side: int, count: int) -> None:
    """Whole, on a GPU of 24 GiB of which the driver's own memory is taken off, and without running out once."""
    jobs = [job(str(i), picture(side, side, seed=i), seed=i, steps=2) for i in range(count)]
    free, total = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    kept = torch.cuda.memory_allocated() - real_engine._modules.weight_bytes  # of prompts, and of libraries
    with at_most(24 * GIB - context):
        events = run(real_engine, *jobs)

    for each in jobs:
        told = notes(events, each.job_id)
        assert (told["tiles"], told.get("out_of_memory_retries", 0)) == (1, 0)
        assert pixels(events, each.job_id).shape == (4 * side, 4 * side, 3)
    assert torch.cuda.max_memory_allocated() - kept <= real_engine.card.peak_bytes(count * side * side)


def test_a_real_picture_beyond_the_memory_runs_in_tiles(real_engine: StableDiffusionX4Engine) -> None:
    """One step of 1280 x 1280, which 24 GiB do not hold whole, without running out."""
    free, total = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()
    with at_most(24 * GIB - context):
        events = run(real_engine, job("a", picture(1280, 1280), steps=1))
    told = notes(events)

    assert told["tiles"] > 1
    assert told.get("out_of_memory_retries", 0) == 0
    assert pixels(events).shape == (5120, 5120, 3)
