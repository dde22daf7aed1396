"""A device whose memory runs out in the middle of a picture, or whose process ends, in its real child process."""

import asyncio
import logging
from pathlib import Path

import numpy as np
import pytest

from fourfold.engine.registry import card
from fourfold.errors import ModelUnavailableError, OutOfMemoryError
from fourfold.imaging import Canvas
from fourfold.telemetry import Metrics
from fourfold.worker import process
from fourfold.worker.orders import DeviceJob
from fourfold.worker.process import Device, DeviceLimits

LANCZOS = "fourfold/lanczos"
SIDE_PX = 600

#: The device's own program, its Lanczos engine short of memory: after two tiles none of more than {most} pixels fits.
HUNGRY = """
import fourfold.engine.lanczos as lanczos
from fourfold.worker import child

compute, begun = lanczos.LanczosEngine._compute, []

def hungry(self, job, tile):
    begun.append(tile)
    if len(begun) > 2 and tile.window.width * tile.window.height > {most}:
        raise MemoryError
    return (yield from compute(self, job, tile))

lanczos.LanczosEngine._compute = hungry
child.main()
"""


def planning_errors(metrics: Metrics) -> float:
    return (
        metrics.registry.get_sample_value("fourfold_memory_plan_errors_total", {"role": "worker", "model_id": LANCZOS})
        or 0.0
    )


#: The device's own program, which does not survive the loading of a network while {flag} is there.
FRAGILE = """
import os
from pathlib import Path
from fourfold.worker import child

load = child.load_engine

def fragile(model_id, *, settings):
    if model_id == "{model_id}" and Path("{flag}").exists():
        os._exit(3)
    return load(model_id, settings=settings)

child.load_engine = fragile
child.main()
"""


@pytest.fixture
def hungry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Have devices run the hungry program; say how much it is given."""

    def become(most: int) -> None:
        (tmp_path / "hungry_child.py").write_text(HUNGRY.format(most=most))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(process, "_MODULE", "hungry_child")

    return become


async def run(folder: Path, metrics: Metrics):
    """Return what a device says of a random picture, and the picture it made."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE_PX, SIDE_PX, 3), np.uint8)
    source = Canvas(folder / "source.raw", SIDE_PX, SIDE_PX)
    source.path.write_bytes(pixels.tobytes())
    target = Canvas(folder / "target.raw", SIDE_PX * 4, SIDE_PX * 4)
    limits = DeviceLimits(threads=1, memory_bytes=2**30, float32=False, capacity=1, load_timeout_s=60, job_timeout_s=60)
    job = DeviceJob("job", LANCZOS, source, target, safety_check=False)
    async with Device(limits, {LANCZOS: card(LANCZOS)}, metrics=metrics) as device:
        result = await device.run(job)
    return result, target.path.read_bytes()


async def test_a_tile_out_of_memory_is_counted_and_the_picture_comes_all_the_same(
    hungry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bit by bit the one that enough memory gives; the log and the metric say that the plan was wrong."""
    metrics = Metrics("worker")
    _, expected = await run(tmp_path, metrics)
    assert planning_errors(metrics) == 0
    hungry(most=40_000)
    with caplog.at_level(logging.WARNING, logger="fourfold"):
        result, made = await run(tmp_path, metrics)

    assert made == expected
    assert planning_errors(metrics) == 1
    assert [record.goes_on for record in caplog.records if record.message == "memory_plan_failed"] == [True]
    assert any("ran out of memory" in warning for warning in result.notes["warnings"])


async def test_a_device_without_memory_for_the_smallest_tile_fails_the_job(hungry, tmp_path: Path) -> None:
    """With a code of its own; the process lives on, so that nothing else is lost."""
    metrics = Metrics("worker")
    hungry(most=0)
    with pytest.raises(OutOfMemoryError, match="not even the smallest part"):
        await run(tmp_path, metrics)

    assert planning_errors(metrics) > 1
    process = {"role": "worker", "process": "device"}
    assert metrics.registry.get_sample_value("fourfold_process_restarts_total", process) == 0


async def test_a_model_whose_load_kills_the_process_is_given_no_job_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After two deaths, so that the other models live; once the cause is gone it is found to load."""
    network = "fourfold/realesr-animevideov3"
    (tmp_path / "flag").touch()
    (tmp_path / "fragile_child.py").write_text(FRAGILE.format(model_id=network, flag=tmp_path / "flag"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(process, "_MODULE", "fragile_child")
    source = Canvas(tmp_path / "source.raw", 8, 8)
    source.path.write_bytes(bytes(8 * 8 * 3))
    limits = DeviceLimits(threads=1, memory_bytes=2**30, float32=False, capacity=1, load_timeout_s=60, job_timeout_s=60)

    async def ask(device: Device, model_id: str) -> None:
        target = Canvas(tmp_path / "target.raw", 32, 32)
        await device.run(DeviceJob("job", model_id, source, target, safety_check=False))

    async with Device(limits, {model_id: card(model_id) for model_id in (LANCZOS, network)}) as device:
        with pytest.raises(ModelUnavailableError, match="status 3, twice"):
            await ask(device, network)
        assert set(device.failures) == {network}
        await ask(device, LANCZOS)

        (tmp_path / "flag").unlink()
        async with asyncio.timeout(60):
            while device.failures:
                await asyncio.sleep(0.01)
        await ask(device, network)
