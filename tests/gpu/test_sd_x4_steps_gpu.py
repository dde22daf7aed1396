"""Steps on a GPU: strict whatever the neighbours and sizes, in 16 bits, in tiles without a wait, on any GPU."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the [diffusion] extra")

import torch

from fourfold.engine.sd_x4 import StableDiffusionX4Engine
from fourfold.testing.sd_x4_stock import job, notes, picture, pixels, run, upscale

pytestmark = pytest.mark.gpu

Make = Callable[..., StableDiffusionX4Engine]


def test_fifty_mixes_of_sizes_settings_and_neighbours_change_no_bit(make_engine: Make) -> None:
    rng, engine = random.Random(7), make_engine((4,))
    sizes = [(64, 64), (64, 64), (128, 64), (64, 128), (100, 90), (128, 128)]
    jobs = [
        job(str(i), picture(*size, seed=i), prompt="cat" * (i % 2), seed=i, steps=i + 1, noise_level=50 * i)
        for i, size in enumerate(sizes)
    ]
    alone = {each.job_id: upscale(engine, each) for each in jobs}
    for _ in range(50):
        events: list[Any] = []
        for each in rng.sample(jobs, rng.randint(2, len(jobs))):
            engine.admit(each)
            for _ in range(rng.randrange(5)):
                events += engine.step()
        events += run(engine)
        for name in {event.job_id for event in events}:
            assert np.array_equal(pixels(events, name), alone[name])


def test_strict_has_cudnn_repeat_itself(make_engine: Make) -> None:
    make_engine((4,)).close()

    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark


def test_16_bit_pictures_keep_their_depth(make_engine: Make) -> None:
    engine, eight = make_engine(), picture()
    deep = upscale(engine, job("a", eight.astype(np.uint16) * 257))

    assert deep.dtype == np.uint16
    assert len(np.unique(deep)) > 256
    assert np.sqrt(np.mean((deep / 257 - upscale(engine, job("b", eight))) ** 2)) < 1


def test_no_step_in_tiles_waits_for_the_gpu(make_engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first step a job's canvas is cut and joined on the GPU alone."""
    engine = make_engine((1, 2))
    monkeypatch.setattr(engine, "_card", replace(engine.card, core_px=32, margin_px=16, tile_pixels=64 * 64))
    engine.admit(job("a", picture(192, 128), steps=4))
    (running,) = engine._running
    while running.at < 1:
        engine.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        while not running.is_denoised:
            engine.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        engine.cancel("a")

    assert len(running.plan.tiles) > 1


def test_recorded_graphs_run_on_the_gpu_that_the_model_is_on(make_engine: Make) -> None:
    """Torch's current device is the first one, whatever device the model is on."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    engine, each = make_engine(device="cuda:1", compiler="inductor"), job(steps=3)
    expected = upscale(engine, each)
    engine._kernels.settle()
    events = run(engine, each)
    error = pixels(events).astype(float) - expected

    assert notes(events)["kernels"] == "compiled"
    assert 10 * np.log10(255**2 / max(1e-9, np.mean(error**2))) >= 50
