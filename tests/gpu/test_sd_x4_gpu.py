"""The diffusion engine on a GPU: exact enough, strict, without waits, within its memory. Tiny random weights."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the [diffusion] extra")

import torch

from fourfold.engine import registry
from fourfold.engine.sd_x4 import StableDiffusionX4Engine
from fourfold.engine.settings import EngineSettings
from fourfold.testing.sd_x4 import write_pipe
from fourfold.testing.sd_x4_stock import job, picture, pixels, run, upscale

pytestmark = pytest.mark.gpu

MODEL = "stabilityai/stable-diffusion-x4-upscaler"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipe(tmp_path_factory.mktemp("tiny"), half=True)


def make(folder: Path, device: str, rows: tuple[int, ...]) -> StableDiffusionX4Engine:
    settings = EngineSettings(threads=1, device=device, batch_rows=rows)
    return StableDiffusionX4Engine(registry.card(MODEL), settings=settings, folder=folder)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[StableDiffusionX4Engine]:
    made = make(folder, "cuda:0", (4,))
    yield made
    made.close()


def test_float16_is_within_50_db_of_float32(folder: Path, engine: StableDiffusionX4Engine) -> None:
    each = job(steps=20)
    error = upscale(engine, each).astype(float) - upscale(make(folder, "cpu", (1,)), each)

    assert 10 * np.log10(255**2 / np.mean(error**2)) >= 50


def test_neighbours_change_no_bit(engine: StableDiffusionX4Engine) -> None:
    jobs = [job(str(i), picture(seed=i), seed=i, steps=i + 1) for i in range(4)]
    alone = [upscale(engine, each) for each in jobs]
    together = run(engine, *reversed(jobs))

    for each, expected in zip(jobs, alone, strict=True):
        assert np.array_equal(pixels(together, each.job_id), expected)


def test_no_step_waits_for_the_gpu(engine: StableDiffusionX4Engine) -> None:
    """After its first step a job is denoised without one synchronisation."""
    engine.admit(job(steps=6))
    engine.step()
    (running,) = engine._running
    torch.cuda.set_sync_debug_mode("error")
    try:
        while not running.is_denoised:
            engine.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        engine.cancel("a")


def test_16_bit_weights_are_read_and_memory_is_given_back(folder: Path) -> None:
    before = torch.cuda.memory_allocated()
    made = make(folder, "cuda:0", (1,))
    upscale(made, job(steps=1))
    assert made._modules.dtype == torch.float16
    made.close()
    del made

    assert torch.cuda.memory_allocated() <= before
