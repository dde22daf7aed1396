"""One device with its real child and real engines: what loads, waits or breaks never stands in another job's way.

A model whose ``model_index.json`` is a named pipe loads for exactly as long as the test wants.
"""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers", reason="needs the [diffusion] extra")

from fourfold.engine import registry
from fourfold.engine.base import DiffusionOptions, EngineCard
from fourfold.errors import DeadlineExceededError, ModelUnavailableError, OutOfMemoryError
from fourfold.imaging import Canvas
from fourfold.telemetry import Metrics
from fourfold.testing.sd_x4 import write_pipe
from fourfold.testing.sd_x4_stock import picture
from fourfold.worker import process
from fourfold.worker.orders import DeviceJob, DeviceResult
from fourfold.worker.process import Device, DeviceLimits

DIFFUSION = "stabilityai/stable-diffusion-x4-upscaler"
PLAIN = "fourfold/lanczos"
NETWORK = "fourfold/realesr-animevideov3"
DRAWINGS = "fourfold/realesrgan-x4plus-anime"
CARDS = {model_id: registry.card(model_id) for model_id in (PLAIN, NETWORK, DRAWINGS, DIFFUSION)}
GIGABYTE = 10**9


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipe(tmp_path_factory.mktemp("model"))


#: The device's own program; with each tile it says where torch would keep what it compiles.
TELLING = """
import os
from pathlib import Path
import fourfold.engine.lanczos as lanczos
from fourfold.worker import child

compute = lanczos.LanczosEngine._compute

def telling(self, job, tile):
    Path(job.prompt).write_text(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    return (yield from compute(self, job, tile))

lanczos.LanczosEngine._compute = telling
child.main()
"""


class Gate:
    """A model's folder that lets its reader wait, once it is armed: a worker looks at it before it starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index = folder / "model_index.json"
        self._text = self._index.read_bytes()
        self._pipe: int | None = None

    def arm(self) -> None:
        """Let the next reader wait."""
        self._index.unlink()
        os.mkfifo(self._index)

    async def reached(self) -> None:
        """Return when somebody reads the file; it stays without an end."""
        self._pipe = await asyncio.to_thread(os.open, self._index, os.O_WRONLY)

    def open(self, text: bytes | None = None) -> None:
        """Let the reader have the file, or *text* instead; further readers do not wait."""
        assert self._pipe is not None
        self.leave(self._text)
        os.write(self._pipe, self._text if text is None else text)
        self.shut()

    def leave(self, text: bytes) -> None:
        """Put *text* where further readers look; who waits goes on waiting."""
        fresh = self._index.with_suffix(".fresh")
        fresh.write_bytes(text)
        fresh.replace(self._index)

    def shut(self) -> None:
        """Let nobody wait any more."""
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None


@pytest.fixture
def gate(model: Path, tmp_path: Path) -> Iterator[Gate]:
    made = Gate(Path(shutil.copytree(model, tmp_path / "gated")))
    yield made
    made.shut()


@asynccontextmanager
async def device(
    folder: Path, *, cards: Mapping[str, EngineCard] = CARDS, warm: tuple[str, ...] = (), **limits: Any
) -> AsyncIterator[Device]:
    """Yield a device of one thread that finds the diffusion model in *folder*."""
    told = {"threads": 1, "memory_bytes": 8 * GIGABYTE, "float32": True, "capacity": 1}
    told |= {"load_timeout_s": 120.0, "job_timeout_s": 120.0, "model_paths": {DIFFUSION: folder}}
    async with Device(DeviceLimits(**{**told, **limits}), cards, warm=warm, metrics=Metrics("worker")) as made:
        yield made


class Jobs:
    """Makes jobs with files of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def make(self, model_id: str, side: int = 64, *, steps: int = 1, image: Any = None) -> DeviceJob:
        self._count += 1
        source = Canvas(self._folder / f"{self._count}.raw", side, side)
        source.path.write_bytes((picture(side, side) if image is None else image).tobytes())
        target = Canvas(self._folder / f"{self._count}.out", 4 * side, 4 * side)
        return DeviceJob(
            str(self._count),
            model_id,
            source,
            target,
            num_inference_steps=steps,
            safety_check=False,
            options=DiffusionOptions(guidance_scale=1.0),
        )


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path)


def begin(device: Device, job: DeviceJob) -> "asyncio.Task[DeviceResult]":
    return asyncio.create_task(device.run(job))


async def test_a_loading_model_stops_no_job_of_a_loaded_one(gate: Gate, jobs: Jobs) -> None:
    """On a device that runs one job at a time, and for a job that came later: its tiles keep coming meanwhile."""
    ticks: list[int] = []
    async with device(gate.folder) as one:
        gate.arm()
        await one.run(jobs.make(PLAIN))
        waiting, cancelled = begin(one, jobs.make(DIFFUSION)), begin(one, jobs.make(DIFFUSION))
        await gate.reached()
        later = jobs.make(PLAIN, 600)
        await one.run(later, lambda done, _total: ticks.append(done))
        assert later.target.read().std() > 0
        assert len(ticks) > 3
        assert one.loaded == (PLAIN,) and not waiting.done()

        cancelled.cancel()  # who waits for a load leaves at once, and the load goes on for the other
        await asyncio.gather(cancelled, return_exceptions=True)
        gate.open()
        await waiting
        assert set(one.loaded) == {PLAIN, DIFFUSION}
        assert one.running == 0


async def test_a_model_that_cannot_be_loaded_is_marked_and_the_worker_goes_on(gate: Gate, jobs: Jobs) -> None:
    """Its jobs are told why; others run in the same child; mended, it is there by itself, and the mark is gone."""
    async with device(gate.folder) as one:
        gate.arm()
        await one.run(jobs.make(PLAIN))
        pid = one.pid
        failing = begin(one, jobs.make(DIFFUSION))
        await gate.reached()
        gate.open(b"[]")
        with pytest.raises(ModelUnavailableError, match="JSON object"):
            await failing

        assert set(one.failures) == {DIFFUSION}
        await one.run(jobs.make(PLAIN))
        async with asyncio.timeout(60):
            while one.failures:
                await asyncio.sleep(0.01)
        assert one.pid == pid and DIFFUSION in one.loaded


async def test_a_load_that_hangs_costs_its_own_jobs_alone(gate: Gate, jobs: Jobs) -> None:
    """It is given up after its time; the child is replaced, and works."""
    async with device(gate.folder) as one:
        gate.arm()
        await one.run(jobs.make(PLAIN))
        pid, one._models._load_timeout_s = one.pid, 0.5
        hanging = begin(one, jobs.make(DIFFUSION))
        await gate.reached()
        with pytest.raises(ModelUnavailableError, match="did not load within"):
            await hanging
        gate.leave(b"[]")
        gate.shut()

        with pytest.raises(ModelUnavailableError, match="did not load within"):
            await one.run(jobs.make(DIFFUSION))  # at once: it may cost the next child as well
        await one.run(jobs.make(PLAIN))
        assert one.pid != pid


async def test_a_child_killed_while_it_loads_is_replaced_and_the_load_tried_again(gate: Gate, jobs: Jobs) -> None:
    async with device(gate.folder) as one:
        gate.arm()
        waiting = begin(one, jobs.make(DIFFUSION))
        await gate.reached()
        gate.leave(b"[]")
        assert one.pid is not None
        os.kill(one.pid, 9)
        with pytest.raises(ModelUnavailableError, match="JSON object"):
            await waiting


async def test_a_job_waits_for_a_load_no_longer_than_for_anything(gate: Gate, jobs: Jobs) -> None:
    """The job's time counts its waiting; the load is not ended by it."""
    async with device(gate.folder) as one:
        gate.arm()
        await one.run(jobs.make(PLAIN))
        pid, limits = one.pid, one._limits
        one._limits = replace(limits, job_timeout_s=0.5)
        waiting = begin(one, jobs.make(DIFFUSION))
        await gate.reached()
        with pytest.raises(DeadlineExceededError):
            await waiting

        one._limits = limits
        assert one.pid == pid
        gate.open(b"[]")
        await one.run(jobs.make(PLAIN))


async def test_the_least_recently_used_idle_model_leaves_when_memory_is_needed(model: Path, jobs: Jobs) -> None:
    """By the cards, 120 MB of an idle model and 430 MB of a job do not go into 500; what weighs nothing stays."""
    async with device(model, memory_bytes=500_000_000) as one:
        await one.run(jobs.make(NETWORK))
        await one.run(jobs.make(PLAIN))
        assert set(one.loaded) == {NETWORK, PLAIN}

        await one.run(jobs.make(DRAWINGS))
        assert set(one.loaded) == {PLAIN, DRAWINGS}


async def test_a_picture_that_cannot_fit_is_refused_before_anything_is_loaded(model: Path, jobs: Jobs) -> None:
    """By the card alone; the message names a size that fits. A smaller one is not held up by it."""
    card = replace(CARDS[DIFFUSION], core_px=1024)
    async with device(model, cards={**CARDS, DIFFUSION: card}, memory_bytes=6 * GIGABYTE) as one:
        large = np.zeros((1200, 1200, 3), np.uint8)
        with pytest.raises(OutOfMemoryError, match=r"192 px square"):
            await one.run(jobs.make(DIFFUSION, 1200, image=large))

        assert one.loaded == ()
        await one.run(jobs.make(DIFFUSION))


async def test_a_job_waits_until_a_busy_model_leaves_it_room(model: Path, jobs: Jobs) -> None:
    """It is queued, neither refused nor run beside it; a job that comes later does not pass it."""
    ended: list[str] = []
    async with device(model, capacity=2, memory_bytes=500_000_000) as one:
        running = {name: begin(one, job) for name, job in (
            ("busy", jobs.make(NETWORK, 300)), ("queued", jobs.make(DRAWINGS)), ("latest", jobs.make(NETWORK)),
        )}  # fmt: skip
        for name, task in running.items():
            task.add_done_callback(lambda _, name=name: ended.append(name))
        await asyncio.gather(*running.values())

    assert ended == ["busy", "queued", "latest"]


async def test_after_a_crash_each_job_is_tried_again_alone(model: Path, jobs: Jobs) -> None:
    """Two that ran side by side when the child died never run together again, and both get their picture."""
    async with device(model, capacity=2) as one:
        first, second = jobs.make(PLAIN, 600), jobs.make(PLAIN, 600)
        together: list[int] = []
        killed: list[int] = []

        def kill_once(_done: int, _total: int) -> None:
            if killed and one.pid != killed[0]:
                together.append(one.running)
            elif not killed and one.running == 2 and one.pid is not None:
                killed.append(one.pid)
                os.kill(one.pid, 9)

        await asyncio.gather(one.run(first, kill_once), one.run(second, kill_once))

        assert killed and one.pid != killed[0]
        assert set(together) == {1}
        assert np.array_equal(first.target.read(), second.target.read())


async def test_compiled_kernels_are_kept_in_the_folder_that_the_worker_names(
    model: Path, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch asks the environment for it; a later process finds there what an earlier one compiled."""
    (tmp_path / "telling_child.py").write_text(TELLING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(process, "_MODULE", "telling_child")
    async with device(model, kernels=tmp_path / "kernels") as one:
        await one.run(replace(jobs.make(PLAIN), prompt=str(tmp_path / "told")))

    assert (tmp_path / "told").read_text() == str(tmp_path / "kernels")
