"""The diffusion engine on a GPU: exact enough, strict, without waits, within its memory. Tiny random weights."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the [diffusion] extra")

import torch

from fourfold.engine import registry
from fourfold.engine.base import EngineJob
from fourfold.engine.sd_x4 import StableDiffusionX4Engine
from fourfold.engine.sd_x4_job import Running
from fourfold.engine.settings import EngineSettings
from fourfold.testing.sd_x4 import write_pipe
from fourfold.testing.sd_x4_stock import job, notes, picture, pixels, run, upscale

pytestmark = pytest.mark.gpu

MODEL = "stabilityai/stable-diffusion-x4-upscaler"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipe(tmp_path_factory.mktemp("tiny"), half=True)


def make(folder: Path, device: str, rows: tuple[int, ...], compiler: str | None = None) -> StableDiffusionX4Engine:
    settings = EngineSettings(threads=1, device=device, batch_rows=rows, compiler=compiler)
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


def denoise_without_a_wait(engine: StableDiffusionX4Engine) -> None:
    """Denoise the one job that runs; torch raises where a step synchronises."""
    (running,) = engine._running
    torch.cuda.set_sync_debug_mode("error")
    try:
        while not running.is_denoised:
            engine.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        engine.cancel("a")


def test_no_step_waits_for_the_gpu(engine: StableDiffusionX4Engine) -> None:
    """After its first step a job is denoised without one synchronisation."""
    engine.admit(job(steps=6))
    engine.step()
    denoise_without_a_wait(engine)


def test_16_bit_weights_are_read_and_memory_is_given_back(folder: Path) -> None:
    before = torch.cuda.memory_allocated()
    made = make(folder, "cuda:0", (1,))
    upscale(made, job(steps=1))
    assert made._modules.dtype == torch.float16
    made.close()
    del made

    assert torch.cuda.memory_allocated() <= before


def compile_all(engine: StableDiffusionX4Engine, each: EngineJob) -> None:
    """Run *each* eagerly and wait until its shape is compiled."""
    run(engine, each)
    engine._kernels.settle()
    assert engine._kernels._compiler._ready, engine._kernels.remarks()


def test_recorded_kernels_give_the_eager_picture_and_take_every_input(folder: Path) -> None:
    """Compiled and replayed as a CUDA graph: other seeds and prompts give other pictures, those of eager kernels."""
    eager, compiled = make(folder, "cuda:0", (1,)), make(folder, "cuda:0", (1,), "inductor")
    compile_all(compiled, job(steps=1))
    for each in (job(steps=20), job(steps=20, seed=1), job(steps=20, prompt="dog")):
        events = run(compiled, each)
        error = pixels(events).astype(float) - upscale(eager, each)

        assert notes(events)["kernels"] == "compiled"
        assert 10 * np.log10(255**2 / max(1e-9, np.mean(error**2))) >= 50
    assert compiled._kernels._recorded


def test_graphs_give_their_memory_up_and_are_recorded_again(folder: Path) -> None:
    """With the same bytes: recorded, called kernel by kernel, and recorded anew."""
    engine, each = make(folder, "cuda:0", (1,), "inductor"), job(steps=3)
    compile_all(engine, each)
    expected = upscale(engine, each)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    engine._kernels.release()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < before

    with pytest.MonkeyPatch.context() as short:
        short.setattr(Running, "has_run_short", True)
        unrecorded = upscale(engine, each)
        assert not engine._kernels._recorded
    again = upscale(engine, each)

    assert engine._kernels._recorded
    assert np.array_equal(unrecorded, expected)
    assert np.array_equal(again, expected)


def test_no_recorded_step_waits_for_the_gpu(folder: Path) -> None:
    engine = make(folder, "cuda:0", (1,), "inductor")
    compile_all(engine, job(steps=1))
    engine.admit(job(steps=6))
    engine.step()  # records the graph
    denoise_without_a_wait(engine)


def test_strict_and_compiled_neighbours_change_no_bit(folder: Path) -> None:
    engine = make(folder, "cuda:0", (4,), "inductor")
    jobs = [job(str(i), picture(seed=i), seed=i, steps=i + 1) for i in range(4)]
    compile_all(engine, jobs[0])
    alone = [upscale(engine, each) for each in jobs]
    together = run(engine, *reversed(jobs))

    for each, expected in zip(jobs, alone, strict=True):
        assert notes(together, each.job_id)["kernels"] == "compiled"
        assert np.array_equal(pixels(together, each.job_id), expected)


def test_a_loading_model_leaves_a_running_jobs_picture_as_it_is(folder: Path) -> None:
    """A load in another thread changes torch's defaults for a moment, and uses the same stream."""
    engine = make(folder, "cuda:0", (1,))
    expected = upscale(engine, job(steps=20))
    loading = threading.Thread(target=lambda: make(folder, "cuda:0", (1,)).close())
    engine.admit(job(steps=20))
    loading.start()
    made = pixels(run(engine))
    loading.join()

    assert np.array_equal(made, expected)
