"""A device whose engine breaks on single jobs, in its real child process: each fails by its own code, others do not."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers", reason="needs the [diffusion] extra")

from fourfold.engine import registry
from fourfold.engine.base import DiffusionOptions
from fourfold.errors import EngineCrashedError, FourfoldError, OutOfMemoryError, WorkerFailedError
from fourfold.imaging import Canvas
from fourfold.telemetry import Metrics
from fourfold.testing.sd_x4 import THIN, write_pipe
from fourfold.testing.sd_x4_stock import picture
from fourfold.worker import process
from fourfold.worker.orders import DeviceJob
from fourfold.worker.process import Device, DeviceLimits

DIFFUSION = "stabilityai/stable-diffusion-x4-upscaler"
PLAIN = "fourfold/lanczos"

#: The device's own program, its Lanczos engine fatal for one job: the process ends as if killed, in the first tile.
FATAL = """
import os
import fourfold.engine.lanczos as lanczos
from fourfold.worker import child

compute = lanczos.LanczosEngine._compute

def fatal(self, job, tile):
    if job.job_id == "poison":
        os.kill(os.getpid(), 9)
    return (yield from compute(self, job, tile))

lanczos.LanczosEngine._compute = fatal
child.main()
"""

#: The same, its diffusion engine wrong for some prompts from their second step on; it writes down whose step is taken.
WRONG = """
import os
import torch
import fourfold.engine.sd_x4_job as jobs
from fourfold.worker import child

inputs = jobs.Running.inputs

def wrong(self, tile):
    with open(os.environ["STEPS"], "a") as steps:
        print(self.job.job_id, file=steps)
    if self.at == 1 and self.job.prompt == "full":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 256.00 GiB")
    return inputs(self, tile) * (torch.nan if self.at == 1 and self.job.prompt == "nan" else 1)

jobs.Running.inputs = wrong
child.main()
"""


@pytest.fixture
def run_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have devices run a program of the test's."""

    def become(program: str) -> None:
        (tmp_path / "changed_child.py").write_text(program)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.setattr(process, "_MODULE", "changed_child")

    return become


def make_job(folder: Path, job_id: str, model_id: str, *, side: int = 64, prompt: str = "cat", steps: int = 3) -> Any:
    """Return a job on a picture whose files lie in *folder*."""
    source = Canvas(folder / f"{job_id}.raw", side, side)
    source.path.write_bytes(picture(side, side).tobytes())
    options = DiffusionOptions(guidance_scale=1.0)
    target = Canvas(folder / f"{job_id}.out", 4 * side, 4 * side)
    told = {"prompt": prompt, "num_inference_steps": steps, "safety_check": False, "options": options}
    return DeviceJob(job_id, model_id, source, target, **told)


def make_device(models: dict[str, Path], *, capacity: int, metrics: Metrics) -> Device:
    limits = DeviceLimits(
        threads=1,
        memory_bytes=8 * 10**9,
        float32=True,
        capacity=capacity,
        load_timeout_s=120,
        job_timeout_s=120,
        model_paths=models,
    )
    return Device(limits, {model_id: registry.card(model_id) for model_id in (PLAIN, *models)}, metrics=metrics)


def counted(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, {"role": "worker", **labels}) or 0.0


async def test_a_job_that_kills_its_process_costs_its_neighbours_nothing_but_time(
    run_as: Callable[[str], None], tmp_path: Path
) -> None:
    """Each is tried again alone: only so can the second death, of the guilty one, take nobody along."""
    run_as(FATAL)
    metrics = Metrics("worker")
    jobs = {name: make_job(tmp_path, name, PLAIN, side=300) for name in ("before", "poison", "after")}
    async with make_device({}, capacity=3, metrics=metrics) as device:
        ends = await asyncio.gather(*(device.run(job) for job in jobs.values()), return_exceptions=True)
        how = dict(zip(jobs, ends, strict=True))
        later = make_job(tmp_path, "later", PLAIN, side=300)
        await device.run(later)
        assert device.running == 0

    assert isinstance(how.pop("poison"), EngineCrashedError)
    assert not [end for end in how.values() if isinstance(end, BaseException)]
    assert counted(metrics, "fourfold_process_restarts_total", process="device") == 2
    for name in how:
        assert np.array_equal(jobs[name].target.read(), later.target.read())


async def test_what_breaks_in_a_diffusion_job_has_its_code_and_the_next_one_is_fine(
    run_as: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers that are not finite, memory that runs out twice, a caller who leaves: in one process, which lives on."""
    run_as(WRONG)
    monkeypatch.setenv("STEPS", str(tmp_path / "steps"))
    metrics = Metrics("worker")
    model = write_pipe(tmp_path / "model", THIN)

    async with make_device({DIFFUSION: model}, capacity=2, metrics=metrics) as device:

        async def failing(prompt: str) -> FourfoldError:
            with pytest.raises(FourfoldError) as caught:
                await device.run(make_job(tmp_path, prompt, DIFFUSION, prompt=prompt))
            return caught.value

        first = make_job(tmp_path, "first", DIFFUSION)
        await device.run(first)
        pid = device.pid
        assert isinstance(await failing("nan"), WorkerFailedError)
        assert isinstance(await failing("full"), OutOfMemoryError)

        is_stepping = asyncio.Event()
        endless = make_job(tmp_path, "endless", DIFFUSION, steps=999)
        left = asyncio.create_task(device.run(endless, lambda done, _total: is_stepping.set() if done else None))
        await asyncio.wait({left, asyncio.create_task(is_stepping.wait())}, return_when=asyncio.FIRST_COMPLETED)
        assert not left.done()
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)

        last = make_job(tmp_path, "last", DIFFUSION)
        await device.run(last)
        assert (device.pid, device.running) == (pid, 0)
        assert len(os.listdir(f"/proc/{pid}/fd")) < 40

    assert np.array_equal(last.target.read(), first.target.read())
    steps = (tmp_path / "steps").read_text().split()
    assert steps[-3:] == ["last"] * 3 and steps.count("endless") < 999
    assert counted(metrics, "fourfold_memory_plan_errors_total", model_id=DIFFUSION) == 2
    assert counted(metrics, "fourfold_process_restarts_total", process="device") == 0
